package inprocess

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/endpointd/endpointd/internal/testkit"
)

func TestMain(m *testing.M) { testkit.Main(m) }

func serve(t *testing.T, handler http.HandlerFunc) (*Transport, *http.Client) {
	tr := New()
	tr.Serve(handler)
	t.Cleanup(tr.Close)
	return tr, &http.Client{Transport: tr}
}

func TestRequestAndAnswer(t *testing.T) {
	_, client := serve(t, func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		w.Header().Set("X-Saw", fmt.Sprint(r.Method, " ", r.RequestURI, " ", r.Host, " ", r.Header.Get("X-In"), " ", string(body)))
		w.WriteHeader(http.StatusTeapot)
		w.Header().Set("X-Late", "not sent")
		fmt.Fprint(w, "short and stout")
	})
	req, _ := http.NewRequest(http.MethodPut, "https://here/a%2Fb?c=d", strings.NewReader("payload"))
	req.Header.Set("X-In", "in")
	res, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	body, err := io.ReadAll(res.Body)
	if err != nil || res.StatusCode != http.StatusTeapot || string(body) != "short and stout" || res.Header.Get("X-Late") != "" {
		t.Errorf("%d %q %v %v", res.StatusCode, body, res.Header, err)
	}
	if got, want := res.Header.Get("X-Saw"), "PUT /a%2Fb?c=d here in payload"; got != want {
		t.Errorf("the handler saw %q, want %q", got, want)
	}
}

func TestHandlerThatWritesNothing(t *testing.T) {
	_, client := serve(t, func(http.ResponseWriter, *http.Request) {})
	res, err := client.Get("http://here/")
	if err != nil || res.StatusCode != http.StatusOK {
		t.Fatal(res, err)
	}
	if b, err := io.ReadAll(res.Body); err != nil || len(b) != 0 {
		t.Errorf("%q %v", b, err)
	}
}

// What is written is with the client before the handler returns, and closing the
// body ends the handler.
func TestStream(t *testing.T) {
	next, ended := make(chan string), make(chan error, 1)
	_, client := serve(t, func(w http.ResponseWriter, r *http.Request) {
		w.(http.Flusher).Flush()
		for s := range next {
			fmt.Fprint(w, s)
		}
		<-r.Context().Done()
		_, err := w.Write([]byte("x"))
		ended <- err
	})
	res, err := client.Get("http://here/")
	if err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 100)
	for _, s := range []string{"one", "two", "three"} {
		next <- s
		if n, err := res.Body.Read(b); err != nil || string(b[:n]) != s {
			t.Fatalf("read %q, %v", b[:n], err)
		}
	}
	close(next)
	_ = res.Body.Close()
	if err := <-ended; !errors.Is(err, io.ErrClosedPipe) {
		t.Errorf("writing to nobody: %v", err)
	}
	if _, err := res.Body.Read(b); !errors.Is(err, http.ErrBodyReadAfterClose) {
		t.Errorf("reading a closed body: %v", err)
	}
}

func TestClientGivesUp(t *testing.T) {
	t.Run("before the header", func(t *testing.T) {
		_, client := serve(t, func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Millisecond)
		defer cancel()
		req, _ := http.NewRequestWithContext(ctx, http.MethodGet, "http://here/", nil)
		if _, err := client.Do(req); !errors.Is(err, context.DeadlineExceeded) {
			t.Error(err)
		}
	})
	t.Run("in the body: no clean end", func(t *testing.T) {
		_, client := serve(t, func(w http.ResponseWriter, r *http.Request) {
			fmt.Fprint(w, "half")
			<-r.Context().Done()
		})
		ctx, cancel := context.WithCancel(context.Background())
		req, _ := http.NewRequestWithContext(ctx, http.MethodGet, "http://here/", nil)
		res, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		cancel()
		if _, err := io.ReadAll(res.Body); !errors.Is(err, context.Canceled) {
			t.Errorf("read to the end with %v", err)
		}
	})
	t.Run("waiting for a handler", func(t *testing.T) {
		tr := New()
		defer tr.Close()
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Millisecond)
		defer cancel()
		req, _ := http.NewRequestWithContext(ctx, http.MethodGet, "http://here/", nil)
		if _, err := (&http.Client{Transport: tr}).Do(req); !errors.Is(err, context.DeadlineExceeded) {
			t.Error(err)
		}
	})
}

func TestHandlerPanics(t *testing.T) {
	_, client := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/late" {
			fmt.Fprint(w, "half")
		}
		panic(http.ErrAbortHandler)
	})
	if _, err := client.Get("http://here/early"); err == nil {
		t.Error("no error for a handler that panicked before its header")
	}
	res, err := client.Get("http://here/late")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadAll(res.Body); err == nil {
		t.Error("a broken answer ends cleanly")
	}
}

// A handler gets no further ahead of its reader than the pipe is long.
func TestSlowReaderHoldsTheHandler(t *testing.T) {
	const chunk = 1 << 10
	wrote := make(chan int, 1000)
	_, client := serve(t, func(w http.ResponseWriter, _ *http.Request) {
		for i := range 200 {
			_, _ = w.Write(make([]byte, chunk))
			wrote <- i + 1
		}
	})
	res, err := client.Get("http://here/")
	if err != nil {
		t.Fatal(err)
	}
	read, last := 0, 0
	for b := make([]byte, chunk); ; {
		n, err := res.Body.Read(b)
		if err == io.EOF {
			break
		}
		read += n
		for len(wrote) > 0 {
			last = <-wrote
		}
		if ahead := last*chunk - read; ahead > pipeSize+chunk {
			t.Fatalf("the handler is %d bytes ahead", ahead)
		}
	}
	if read != 200*chunk {
		t.Errorf("read %d bytes", read)
	}
}

// One write larger than the pipe goes through as a whole.
func TestLargeWrite(t *testing.T) {
	_, client := serve(t, func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(make([]byte, 10*pipeSize)) })
	res, err := client.Get("http://here/")
	if err != nil {
		t.Fatal(err)
	}
	if b, err := io.ReadAll(res.Body); err != nil || len(b) != 10*pipeSize {
		t.Errorf("%d bytes, %v", len(b), err)
	}
}

func TestClose(t *testing.T) {
	tr, client := serve(t, func(w http.ResponseWriter, r *http.Request) {
		w.(http.Flusher).Flush()
		<-r.Context().Done()
	})
	res, err := client.Get("http://here/")
	if err != nil {
		t.Fatal(err)
	}
	tr.Close() // returns when the handler has
	if _, err := io.ReadAll(res.Body); !errors.Is(err, ErrClosed) {
		t.Errorf("a watch at the end of its server: %v", err)
	}
	if _, err := client.Get("http://here/"); !errors.Is(err, ErrClosed) {
		t.Errorf("a request after it: %v", err)
	}
	waiting := New()
	waiting.Close()
	if _, err := (&http.Client{Transport: waiting}).Get("http://here/"); !errors.Is(err, ErrClosed) {
		t.Errorf("a request to a server that never was: %v", err)
	}
}
