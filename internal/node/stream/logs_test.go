package stream

import (
	"bufio"
	"context"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/endpointd/endpointd/internal/node/logs"
	"github.com/endpointd/endpointd/internal/testkit"
)

func (r *rig) log(t *testing.T, pod, name string, attempt int, lines ...string) {
	t.Helper()
	f, err := os.OpenFile(r.runtime.LogFile("uid-"+pod, name, attempt), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	for i, line := range lines {
		stream, text, _ := strings.Cut(line, " ")
		if _, err := fmt.Fprintf(f, "2026-01-02T03:04:%02dZ %s F %s\n", i%60, stream, text); err != nil {
			t.Fatal(err)
		}
	}
}

func TestLogs(t *testing.T) {
	r := newRig(t, nil)
	r.log(t, "web", "app", 0, "stdout the one before")
	r.log(t, "web", "app", 1, "stdout a", "stderr b", "stdout c")

	terminated := func(id string) corev1.ContainerState {
		return corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{ContainerID: id}}
	}
	waiting := func(reason string) corev1.ContainerState {
		return corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: reason}}
	}
	r.pods.set(podOf("done", corev1.ContainerStatus{Name: "app", State: terminated(idOf("done", "app", 0))}))
	r.log(t, "done", "app", 0, "stdout last words")
	r.pods.set(podOf("crashing", corev1.ContainerStatus{
		Name: "app", State: waiting("CrashLoopBackOff"), LastTerminationState: terminated(idOf("crashing", "app", 3))}))
	r.log(t, "crashing", "app", 3, "stderr panic")
	r.pods.set(podOf("new", corev1.ContainerStatus{Name: "app", State: waiting("ContainerCreating")}))
	r.pods.set(podOf("imageless", corev1.ContainerStatus{Name: "app", State: waiting("ImagePullBackOff")}))
	r.pods.set(podOf("lost", corev1.ContainerStatus{Name: "app", State: terminated("")}))
	r.pods.set(podOf("odd", corev1.ContainerStatus{Name: "app", ContainerID: "containerd://abc",
		State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{}}}))
	unseen := podOf("unseen")
	unseen.Spec.Containers = []corev1.Container{{Name: "app"}}
	r.pods.set(unseen)

	for _, c := range []struct {
		path string
		code int
		text string
	}{
		{"web/app", 200, "a\nb\nc\n"},
		{"web/app?tailLines=1", 200, "c\n"},
		{"web/app?tail=2", 200, "b\nc\n"},
		{"web/app?tail=all", 200, "a\nb\nc\n"},
		{"web/app?limitBytes=3", 200, "a\nb"},
		{"web/app?stream=Stderr", 200, "b\n"},
		{"web/app?timestamps=true&tailLines=1", 200, "2026-01-02T03:04:02Z c\n"},
		{"web/app?timestamps=false&follow=0", 200, "a\nb\nc\n"},
		{"web/app?sinceTime=2026-01-02T03:04:01Z", 200, "b\nc\n"},
		{"web/app?sinceSeconds=99999999999999999", 200, "a\nb\nc\n"},
		{"web/app?previous=true", 200, "the one before\n"},
		{"done/app", 200, "last words\n"},
		{"done/app?follow=true", 200, "last words\n"},
		{"crashing/app", 200, "panic\n"},
		{"crashing/app?previous=true", 200, "panic\n"},
		{"none/app", 404, `pod "none" does not exist`},
		{"web/none", 404, `container "none" not found in pod "web"`},
		{"done/app?previous=true", 400, `previous terminated container "app" in pod "done" not found`},
		{"new/app", 400, `container "app" in pod "new" is waiting to start: ContainerCreating`},
		{"imageless/app", 400, `container "app" in pod "imageless" is waiting to start: trying and failing to pull image`},
		{"lost/app", 400, `container "app" in pod "lost" is terminated`},
		{"unseen/app", 400, `container "app" in pod "unseen" is not available`},
		{"odd/app", 500, `container ID "containerd://abc" is not one of this runtime's: it does not end in the number of the attempt`},
		{"web/app?tailLines=-1", 422, "query parameter tailLines=-1 must be a number of at least 0"},
		{"web/app?limitBytes=0", 422, "query parameter limitBytes=0 must be a number of at least 1"},
		{"web/app?sinceTime=yesterday", 422, "query parameter sinceTime=yesterday is no RFC 3339 time"},
		{"web/app?stream=Both", 422, "query parameter stream=Both must be All, Stdout or Stderr"},
	} {
		if code, text := do(t, r.admin, http.MethodGet, "/containerLogs/default/"+c.path); code != c.code || text != c.text {
			t.Errorf("%s: got %d %q, want %d %q", c.path, code, text, c.code, c.text)
		}
	}
	if code, _ := do(t, r.admin, http.MethodPost, "/containerLogs/default/web/app"); code != http.StatusMethodNotAllowed {
		t.Errorf("POST: got %d", code)
	}
}

func TestSinceTwice(t *testing.T) {
	if _, err := parseLogRequest(url.Values{"sinceSeconds": {"1"}, "sinceTime": {"2026-01-02T03:04:01Z"}}, time.Now()); err == nil {
		t.Error("sinceSeconds and sinceTime were taken together")
	}
	o, err := parseLogRequest(url.Values{"sinceSeconds": {"60"}, "follow": {""}, "stream": {"Stdout"}}, time.Unix(1000, 0))
	if err != nil || !o.Since.Equal(time.Unix(940, 0)) || !o.Follow || o.Stream != logs.Stdout {
		t.Errorf("got %+v, %v", o, err)
	}
}

// follow begins to read a log and gives its lines.
func (r *rig) follow(t *testing.T, ctx context.Context) (lines *bufio.Scanner, end func()) { //nolint:revive // t first, as in every helper
	t.Helper()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, r.admin.Host+"/containerLogs/default/web/app?follow=true", http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	response, err := httpClient(t, r.admin).Do(request)
	if err != nil {
		t.Fatal(err)
	}
	return bufio.NewScanner(response.Body), func() { _ = response.Body.Close() }
}

func next(t *testing.T, lines *bufio.Scanner, want string) {
	t.Helper()
	if !lines.Scan() || lines.Text() != want {
		t.Fatalf("got %q, %v; want %q", lines.Text(), lines.Err(), want)
	}
}

func TestFollowEndsWithTheContainer(t *testing.T) {
	r := newRig(t, nil)
	lines, end := r.follow(t, t.Context()) // before anything was written
	defer end()
	r.log(t, "web", "app", 1, "stdout a")
	next(t, lines, "a")
	r.log(t, "web", "app", 1, "stderr b")
	next(t, lines, "b")
	r.log(t, "web", "app", 1, "stdout bye")
	r.pods.set(podOf("web", runningStatus("web", "app", 2))) // restarted: this is another container
	next(t, lines, "bye")
	if lines.Scan() || lines.Err() != nil {
		t.Errorf("after the end came %q, %v", lines.Text(), lines.Err())
	}
}

func TestFollowEndsWithTheServer(t *testing.T) {
	r := newRig(t, nil)
	lines, end := r.follow(t, t.Context())
	defer end()
	r.log(t, "web", "app", 1, "stdout a")
	next(t, lines, "a")
	if err := r.stop(); err != nil {
		t.Error(err)
	}
}

func TestFollowEndsWithTheClient(t *testing.T) {
	r := newRig(t, func(o *Options) { o.MaxStreams = 1 })
	ctx, cancel := context.WithCancel(t.Context())
	lines, end := r.follow(t, ctx)
	defer end()
	r.log(t, "web", "app", 1, "stdout a")
	next(t, lines, "a")
	cancel()
	testkit.Await(t, 10*time.Second, func() error {
		if code, text := do(t, r.admin, http.MethodGet, "/containerLogs/default/web/app"); code != http.StatusOK {
			return fmt.Errorf("the follower's place is not free: %d %s", code, text)
		}
		return nil
	})
}
