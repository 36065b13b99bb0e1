package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"runtime"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
)

// A batch of changes to nf_tables is one system call on a netlink socket, which returns when the kernel has committed all of it. Both the nft
// program and ours send it with one of these (numbers of x86-64), and its first message is of this type (nfnetlink.h).
const (
	sysSendto   = 44
	sysSendmsg  = 46
	batchBegins = 16
	secondArg   = 104 // offset of %rsi in struct pt_regs: msg of sendmsg(2), buf of sendto(2)
)

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
	if runtime.GOARCH != "amd64" {
		return nil, errors.New("the numbers of system calls are known for amd64 only")
	}
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
		point string
		code  asm.Instructions
	}{{"sys_enter", t.entry(id)}, {"sys_exit", t.exit()}} {
		program, err := ebpf.NewProgram(&ebpf.ProgramSpec{Type: ebpf.RawTracepoint, Instructions: p.code, License: "GPL"})
		if err != nil {
			return t, fmt.Errorf("trace %s: %w", p.point, err)
		}
		t.programs = append(t.programs, program)
		l, err := link.AttachRawTracepoint(link.RawTracepointOptions{Name: p.point, Program: program})
		if err != nil {
			return t, fmt.Errorf("trace %s: %w", p.point, err)
		}
		t.links = append(t.links, l)
	}
	return t, nil
}

// entry notes when a thread of the group sends a batch.
func (t *kernelTrace) entry(group uint64) asm.Instructions {
	const slot = -8 // of the stack
	read := func(with asm.BuiltinFunc, offset int32) asm.Instructions {
		return asm.Instructions{ // the eight bytes at R7+offset
			asm.Mov.Reg(asm.R1, asm.RFP), asm.Add.Imm(asm.R1, slot),
			asm.Mov.Imm(asm.R2, 8),
			asm.Mov.Reg(asm.R3, asm.R7), asm.Add.Imm(asm.R3, offset),
			with.Call(),
			asm.JNE.Imm(asm.R0, 0, "end"),
			asm.LoadMem(asm.R7, asm.RFP, slot, asm.DWord),
		}
	}
	var code asm.Instructions
	add := func(more ...asm.Instruction) { code = append(code, more...) }
	add(
		asm.Mov.Reg(asm.R6, asm.R1),
		asm.FnGetCurrentCgroupId.Call(),
		asm.LoadImm(asm.R1, int64(group), asm.DWord), //nolint:gosec // bits
		asm.JNE.Reg(asm.R0, asm.R1, "end"),
		asm.LoadMem(asm.R8, asm.R6, 8, asm.DWord), // number of the call
		asm.LoadMem(asm.R7, asm.R6, 0, asm.DWord), // struct pt_regs
		asm.JEq.Imm(asm.R8, sysSendmsg, "send"),
		asm.JNE.Imm(asm.R8, sysSendto, "end"),
	)
	arg := read(asm.FnProbeReadKernel, secondArg)
	arg[0] = arg[0].WithSymbol("send")
	add(arg...)
	add(asm.JEq.Imm(asm.R8, sysSendto, "message"))
	add(read(asm.FnProbeReadUser, 16)...) // msg_iov of struct msghdr
	add(read(asm.FnProbeReadUser, 0)...)  // iov_base of the first
	message := read(asm.FnProbeReadUser, 0)
	message[0] = message[0].WithSymbol("message")
	add(message...) // length, type and flags of struct nlmsghdr
	add(
		asm.RSh.Imm(asm.R7, 32),
		asm.And.Imm(asm.R7, 0xffff),
		asm.JNE.Imm(asm.R7, batchBegins, "end"),
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
	)
	return code
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
