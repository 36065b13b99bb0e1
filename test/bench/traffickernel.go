package main

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
)

// batchFunction is what the kernel does with one batch of changes to nf_tables, from its first message to the commit.
const batchFunction = "nfnetlink_rcv_batch"

// maxBatches is how many are kept until somebody asks.
const maxBatches = 1 << 14

// kernelTrace measures how long the kernel needs for the batches of the processes in a cgroup. It only looks.
type kernelTrace struct {
	began, lasted *ebpf.Map // thread → when; number → nanoseconds
	programs      []*ebpf.Program
	links         []link.Link
}

// traceKernel begins. Close it, also when it is nil.
func traceKernel(group *cgroup) (t *kernelTrace, err error) {
	id, err := group.id()
	if err != nil {
		return nil, err
	}
	t = &kernelTrace{}
	defer func() {
		if err != nil {
			t.close()
			t = nil
		}
	}()
	for _, m := range []struct {
		to   **ebpf.Map
		spec ebpf.MapSpec
	}{
		{&t.began, ebpf.MapSpec{Type: ebpf.Hash, KeySize: 8, ValueSize: 8, MaxEntries: 1024}},
		{&t.lasted, ebpf.MapSpec{Type: ebpf.Hash, KeySize: 8, ValueSize: 8, MaxEntries: maxBatches}},
	} {
		if *m.to, err = ebpf.NewMap(&m.spec); err != nil {
			return t, fmt.Errorf("map: %w", err)
		}
	}
	for _, p := range []struct {
		at   ebpf.AttachType
		code asm.Instructions
	}{{ebpf.AttachTraceFEntry, t.entry(id)}, {ebpf.AttachTraceFExit, t.exit()}} {
		program, err := ebpf.NewProgram(&ebpf.ProgramSpec{
			Type: ebpf.Tracing, AttachType: p.at, AttachTo: batchFunction, Instructions: p.code, License: "GPL",
		})
		if err != nil {
			return t, fmt.Errorf("trace %s: %w", batchFunction, err)
		}
		t.programs = append(t.programs, program)
		l, err := link.AttachTracing(link.TracingOptions{Program: program, AttachType: p.at})
		if err != nil {
			return t, fmt.Errorf("trace %s: %w", batchFunction, err)
		}
		t.links = append(t.links, l)
	}
	return t, nil
}

// entry notes when a thread of the group begins.
func (t *kernelTrace) entry(group uint64) asm.Instructions {
	return asm.Instructions{
		asm.FnGetCurrentCgroupId.Call(),
		asm.LoadImm(asm.R1, int64(group), asm.DWord), //nolint:gosec // bits
		asm.JNE.Reg(asm.R0, asm.R1, "end"),
		asm.FnGetCurrentPidTgid.Call(),
		asm.StoreMem(asm.RFP, -8, asm.R0, asm.DWord),
		asm.FnKtimeGetNs.Call(),
		asm.StoreMem(asm.RFP, -16, asm.R0, asm.DWord),
		asm.LoadMapPtr(asm.R1, t.began.FD()),
		asm.Mov.Reg(asm.R2, asm.RFP), asm.Add.Imm(asm.R2, -8),
		asm.Mov.Reg(asm.R3, asm.RFP), asm.Add.Imm(asm.R3, -16),
		asm.Mov.Imm(asm.R4, 0),
		asm.FnMapUpdateElem.Call(),
		asm.Mov.Imm(asm.R0, 0).WithSymbol("end"),
		asm.Return(),
	}
}

// exit notes how long it took, under the moment when it ended: no two batches end at once, for the kernel does one at a time in a namespace.
func (t *kernelTrace) exit() asm.Instructions {
	return asm.Instructions{
		asm.FnGetCurrentPidTgid.Call(),
		asm.StoreMem(asm.RFP, -8, asm.R0, asm.DWord),
		asm.LoadMapPtr(asm.R1, t.began.FD()),
		asm.Mov.Reg(asm.R2, asm.RFP), asm.Add.Imm(asm.R2, -8),
		asm.FnMapLookupElem.Call(),
		asm.JEq.Imm(asm.R0, 0, "end"),
		asm.LoadMem(asm.R6, asm.R0, 0, asm.DWord),
		asm.FnKtimeGetNs.Call(),
		asm.StoreMem(asm.RFP, -16, asm.R0, asm.DWord),
		asm.Sub.Reg(asm.R0, asm.R6),
		asm.StoreMem(asm.RFP, -24, asm.R0, asm.DWord),
		asm.LoadMapPtr(asm.R1, t.lasted.FD()),
		asm.Mov.Reg(asm.R2, asm.RFP), asm.Add.Imm(asm.R2, -16),
		asm.Mov.Reg(asm.R3, asm.RFP), asm.Add.Imm(asm.R3, -24),
		asm.Mov.Imm(asm.R4, 0),
		asm.FnMapUpdateElem.Call(),
		asm.LoadMapPtr(asm.R1, t.began.FD()),
		asm.Mov.Reg(asm.R2, asm.RFP), asm.Add.Imm(asm.R2, -8),
		asm.FnMapDeleteElem.Call(),
		asm.Mov.Imm(asm.R0, 0).WithSymbol("end"),
		asm.Return(),
	}
}

// took gives the milliseconds of each batch so far.
func (t *kernelTrace) took() ([]float64, error) {
	if t == nil {
		return nil, nil
	}
	var key, value [8]byte
	var out []float64
	for all := t.lasted.Iterate(); ; {
		if !all.Next(&key, &value) {
			if err := all.Err(); err != nil {
				return nil, fmt.Errorf("times of the kernel: %w", err)
			}
			break
		}
		out = append(out, float64(binary.NativeEndian.Uint64(value[:]))/1e6)
	}
	if len(out) == maxBatches {
		return nil, errors.New("times of the kernel: more batches than can be kept")
	}
	return out, nil
}

func (t *kernelTrace) close() {
	if t == nil {
		return
	}
	for _, l := range t.links {
		_ = l.Close() // it ends with us at the latest
	}
	for _, p := range t.programs {
		_ = p.Close()
	}
	for _, m := range []*ebpf.Map{t.began, t.lasted} {
		if m != nil {
			_ = m.Close()
		}
	}
}
