package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"

	"github.com/endpointd/endpointd/internal/fdstore"
	"github.com/endpointd/endpointd/internal/testkit"
)

// The test binary plays all parts; Args[0] says which one.
func TestMain(m *testing.M) {
	play := map[string]func([]string) error{
		"inside": playInside, "part": playPart, "host": playHost, "dial": playDial, "show": playShow,
	}[os.Args[0]]
	if play == nil && len(os.Args) > 1 && os.Args[0] != "" { // a command of exec has the path as its first argument
		play = map[string]func([]string) error{"dial": playDial, "show": playShow, "host": playHost}[os.Args[1]]
		if play != nil {
			os.Args = os.Args[1:]
		}
	}
	if play == nil {
		// The race detector has every child sleep for a second at its end.
		if err := os.Setenv("GORACE", "atexit_sleep_ms=0"); err != nil {
			panic(err)
		}
		testkit.Main(m)
		return
	}
	if err := play(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// playInside publishes the port in the file "port" of the data folder: who connects reads "inside".
func playInside([]string) error {
	return Run(RunOptions{Logger: slog.New(slog.NewTextHandler(os.Stderr, nil)), Publish: func(ctx context.Context, p Publishing) error {
		text, err := os.ReadFile(filepath.Join(filepath.Dir(p.Kubeconfig), "port"))
		if err != nil {
			<-ctx.Done()
			return nil
		}
		port, err := strconv.ParseUint(string(text), 10, 16)
		if err != nil {
			return err
		}
		files, err := p.Open(ctx, "tcp", uint16(port))
		if err != nil {
			p.Report(Event{Kind: EventWarn, Name: "test", Text: err.Error()})
			<-ctx.Done()
			return nil
		}
		l, err := net.FileListener(files[0])
		closeFiles(files)
		if err != nil {
			return err
		}
		defer context.AfterFunc(ctx, func() { _ = l.Close() })()
		p.Report(Event{Kind: EventStep, Name: "test", Text: "published"})
		for {
			conn, err := l.Accept()
			if err != nil {
				return nil
			}
			_, _ = io.WriteString(conn, "inside")
			_ = conn.Close()
		}
	}})
}

// playPart serves its name over HTTP on port 80 of all addresses until SIGTERM. It keeps the listener, and says when it was kept for it.
func playPart(args []string) error {
	keeper := fdstore.Inherit()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	l, err := net.Listen("tcp", ":80")
	if kept := keeper.Take("http"); len(kept) > 0 {
		fmt.Println("part", args[0], "inherits")
		l, err = net.FileListener(kept[0])
		closeFiles(kept)
	}
	if err != nil {
		return err
	}
	if err := keeper.Keep("http", l.(*net.TCPListener)); err != nil {
		return err
	}
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, args[0]) })}
	defer context.AfterFunc(ctx, func() { _ = server.Close() })()
	fmt.Println("part", args[0], "runs")
	if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// playDial prints what an address answers.
func playDial(args []string) error {
	r, err := http.Get("http://" + args[0])
	if err != nil {
		return err
	}
	defer r.Body.Close() //nolint:errcheck // read only
	_, err = io.Copy(os.Stdout, r.Body)
	return err
}

// playShow prints where it is.
func playShow([]string) error {
	host, _ := os.Hostname()
	resolv, _ := os.ReadFile("/etc/resolv.conf")
	interfaces, _ := net.Interfaces()
	wd, _ := os.Getwd()
	fmt.Println("host", host, "wd", wd, "env", os.Environ())
	fmt.Print(string(resolv))
	for _, i := range interfaces {
		addrs, _ := i.Addrs()
		fmt.Println(i.Name, addrs)
	}
	return nil
}

// playHost is a host side with a process of its own: it prints when all is there and waits to be killed.
func playHost(args []string) error {
	spec, err := testSpec(args[0], 1)
	if err != nil {
		return err
	}
	api, err := listenOn("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	steps := make(chan Event, 100)
	if _, err := Start(Options{Spec: spec, Args: []string{"inside"}, API: api, Event: func(e Event) { steps <- e }}); err != nil {
		return err
	}
	for e := range steps {
		if e.Name == "nodes" {
			fmt.Println("ready")
		}
	}
	return nil
}

func testSpec(dir string, nodes int) (Spec, error) {
	spec, err := Layout(nodes, prefixes("10.244.0.0/16", "fd00:244::/56"), prefixes("10.96.0.0/16"))
	if err != nil {
		return spec, err
	}
	for _, d := range []string{runDir(dir), filepath.Join(dir, "logs")} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return spec, err
		}
	}
	spec.DataDir, spec.Resolv, spec.PublishNodePorts = dir, Resolv(prefixes("10.96.0.0/16")[0]), true
	spec.Server = []string{"part", "server"}
	for i := range spec.Nodes {
		spec.Nodes[i].Args = []string{"part", spec.Nodes[i].Name}
	}
	return spec, nil
}
