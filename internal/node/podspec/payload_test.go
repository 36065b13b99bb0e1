package podspec

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
)

func TestRefreshFollowsObjects(t *testing.T) {
	source := newObjects()
	source.setConfigMap("shop", "config", map[string]string{"a": "1", "b": "1"})
	b, _ := newBuilder(t, source)
	pod := withVolume(configMapVolume("config", true))
	dir := filepath.Join(b.dir, "uid-1/v")
	refresh := func(wantChange bool, want map[string]string) {
		t.Helper()
		changed, err := b.Refresh(t.Context(), pod)
		if err != nil || changed != wantChange {
			t.Fatalf("changed %v, %v; want %v", changed, err, wantChange)
		}
		checkVolume(t, dir, want)
	}
	if err := b.Prepare(t.Context(), pod); err != nil {
		t.Fatal(err)
	}
	refresh(false, map[string]string{"a": "1", "b": "1"})
	source.setConfigMap("shop", "config", map[string]string{"a": "2", "c": "2"})
	refresh(true, map[string]string{"a": "2", "c": "2"})
	refresh(false, map[string]string{"a": "2", "c": "2"})

	source.away = errors.New("the API is away")
	if changed, err := b.Refresh(t.Context(), pod); changed || err == nil {
		t.Errorf("with the API away: %v, %v", changed, err)
	}
	checkVolume(t, dir, map[string]string{"a": "2", "c": "2"})
	source.away = nil

	delete(source.configMaps, "shop/config")
	refresh(true, map[string]string{}) // optional, so its keys go
	pod.Spec.Volumes[0].ConfigMap.Optional = new(false)
	source.setConfigMap("shop", "config", map[string]string{"a": "3"})
	refresh(true, map[string]string{"a": "3"})
	delete(source.configMaps, "shop/config")
	if changed, err := b.Refresh(t.Context(), pod); changed || err == nil {
		t.Errorf("without the object: %v, %v", changed, err)
	}
	checkVolume(t, dir, map[string]string{"a": "3"}) // not optional, so it stays
}

// checkVolume fails unless exactly these files are seen, and nothing is left of what was.
func checkVolume(t *testing.T, dir string, want map[string]string) {
	t.Helper()
	got := map[string]string{}
	for name, text := range tree(t, dir) {
		_, text, _ = strings.Cut(text, " ")
		got[name] = text
	}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("the volume shows %v, want %v", got, want)
	}
	own, err := filepath.Glob(filepath.Join(dir, "..*"))
	if err != nil || len(own) != 2 { // ..data, and what it leads to
		t.Errorf("the volume has %q of its own, %v", own, err)
	}
}

// What an agent that was killed half-way left is in nobody's way.
func TestWriteAfterACrash(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "v")
	content := func(text string) payload {
		return payload{"a": {data: []byte(text), mode: 0o644, uid: -1, gid: -1}, "d/e": {data: []byte(text), mode: 0o600, uid: -1, gid: -1}}
	}
	now := time.Unix(1, 0) // a clock that stands still
	for i, crash := range []func(){
		func() {},
		func() { must(t, os.Symlink("..nowhere", filepath.Join(dir, dataNext))) },
		func() { must(t, os.Mkdir(filepath.Join(dir, now.UTC().Format(timeForm)+".7"), 0o755)) },
		func() { must(t, os.Remove(filepath.Join(dir, "a"))) },
		func() { must(t, os.Remove(filepath.Join(dir, dataLink))) },
		func() { must(t, os.Symlink("..data/old", filepath.Join(dir, "old"))) },
	} {
		if i > 0 {
			crash()
		}
		text := fmt.Sprint(i)
		for _, want := range []bool{true, false} {
			changed, err := writeAtomically(dir, content(text), nil, now)
			if err != nil || changed != want {
				t.Fatalf("crash %d: changed %v, %v", i, changed, err)
			}
		}
		checkVolume(t, dir, map[string]string{"a": text, "d/": "", "d/e": text})
	}
	changed, err := writeAtomically(dir, payload{"a": {data: []byte("5"), mode: 0o600, uid: -1, gid: -1}, "d/e": content("5")["d/e"]}, nil, now)
	if err != nil || !changed {
		t.Errorf("another mode is no change: %v, %v", changed, err)
	}
}

// A reader that holds the folder open sees the keys of one object together, never some of the old and some of the new.
func TestReadersSeeAllOrNothing(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "v")
	write := func(n int) {
		text := fmt.Appendf(nil, "%d", n)
		if _, err := writeAtomically(dir, payload{
			"a": {data: text, mode: 0o644, uid: -1, gid: -1}, "b": {data: text, mode: 0o644, uid: -1, gid: -1},
		}, nil, time.Now()); err != nil {
			t.Error(err)
		}
	}
	write(0)
	ctx, stop := context.WithCancel(t.Context())
	seen, done := 0, make(chan error, 1)
	first := make(chan struct{})
	go func() {
		var once bool
		for ctx.Err() == nil {
			current, err := os.Readlink(filepath.Join(dir, dataLink))
			if err != nil {
				done <- err
				return
			}
			a, errA := os.ReadFile(filepath.Join(dir, current, "a"))
			b, errB := os.ReadFile(filepath.Join(dir, current, "b"))
			if errors.Is(errA, fs.ErrNotExist) || errors.Is(errB, fs.ErrNotExist) {
				continue // replaced meanwhile: look again, as a reader of symbolic links does
			}
			if err := errors.Join(errA, errB); err != nil || string(a) != string(b) {
				done <- fmt.Errorf("a %q, b %q: %w", a, b, err)
				return
			}
			seen++
			if !once {
				once = true
				close(first)
			}
		}
		done <- nil
	}()
	select {
	case <-first:
	case err := <-done:
		t.Fatal(err)
	}
	for n := range 200 {
		write(n + 1)
	}
	stop()
	if err := <-done; err != nil || seen == 0 {
		t.Errorf("after %d looks: %v", seen, err)
	}
}

func TestTokens(t *testing.T) {
	now := time.Unix(1_700_000_000, 0)
	source := newObjects()
	source.now = func() time.Time { return now }
	var log strings.Builder
	b, _ := newBuilderWith(t, source, func(o *Options) {
		o.Now = source.now
		o.Logger = slog.New(slog.NewTextHandler(&log, nil))
	})
	pod := withVolume(corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{Sources: []corev1.VolumeProjection{
		{ServiceAccountToken: &corev1.ServiceAccountTokenProjection{Path: "token", Audience: "vault", ExpirationSeconds: new(int64(1000))}},
	}}})
	pod.Spec.ServiceAccountName = "robot"
	must(t, b.Prepare(t.Context(), pod))
	path := filepath.Join(b.dir, "uid-1/v/token")
	step := func(after time.Duration, wantChange bool, want string) {
		t.Helper()
		now = now.Add(after)
		if changed, err := b.Refresh(t.Context(), pod); err != nil || changed != wantChange {
			t.Fatalf("changed %v, %v; want %v", changed, err, wantChange)
		}
		if got := readString(t, path); got != want {
			t.Errorf("token %q, want %q", got, want)
		}
	}
	step(0, false, "token-1-of-shop/robot")
	step(799*time.Second, false, "token-1-of-shop/robot")
	source.away = errors.New("the API is away")
	now = now.Add(time.Second)
	if changed, err := b.Refresh(t.Context(), pod); changed || err == nil || strings.Contains(err.Error(), "token-1") {
		t.Errorf("with the API away: %v, %v", changed, err)
	}
	source.away = nil
	step(0, true, "token-2-of-shop/robot")
	request := source.requests[0].Spec
	if bound := request.BoundObjectRef; bound == nil || bound.Kind != "Pod" || bound.Name != "web" || bound.UID != "uid-1" ||
		!slices.Equal(request.Audiences, []string{"vault"}) || *request.ExpirationSeconds != 1000 {
		t.Errorf("asked for %+v", request)
	}
	must(t, b.Remove("uid-1"))
	if len(b.tokens) != 0 {
		t.Error("a removed pod's token is kept")
	}
	if strings.Contains(log.String(), "token-") {
		t.Errorf("the log tells a token: %s", &log)
	}
	// A day is the longest that a token is used.
	if got := renewal(now, now.Add(1000*time.Hour)); !got.Equal(now.Add(24 * time.Hour)) {
		t.Errorf("a token of 1000 h is renewed at %v", got.Sub(now))
	}
}

func TestTokenBelongsToTheSoleUser(t *testing.T) {
	uid, gid := int64(os.Getuid()), int64(os.Getgid())
	source := newObjects()
	b, _ := newBuilder(t, source)
	pod := withVolume(corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{Sources: []corev1.VolumeProjection{
		{ServiceAccountToken: &corev1.ServiceAccountTokenProjection{Path: "token"}},
	}}})
	mode := func(want fs.FileMode) {
		t.Helper()
		must(t, b.Prepare(t.Context(), pod))
		info, err := os.Stat(filepath.Join(b.dir, "uid-1/v/token"))
		if err != nil || info.Mode() != want {
			t.Errorf("mode %v, %v; want %v", info.Mode(), err, want)
		}
	}
	mode(0o644)
	pod.Spec.SecurityContext = &corev1.PodSecurityContext{RunAsUser: &uid}
	mode(0o600)
	pod.Spec.SecurityContext.FSGroup = &gid
	mode(0o640)
	other := uid + 1
	pod.Spec.Containers = append(pod.Spec.Containers, corev1.Container{Name: "d", SecurityContext: &corev1.SecurityContext{RunAsUser: &other}})
	if sole := soleUser(pod); sole != nil {
		t.Errorf("two users, and %d is the sole one", *sole)
	}
}
