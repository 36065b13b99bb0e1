package podspec

import (
	"context"
	"fmt"
	"maps"
	"os"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
)

// tokenMaxAge is how old a token gets at most before it is renewed, however long it lives.
const tokenMaxAge = 24 * time.Hour

// defaultTokenLife is the API's for a projection that says nothing.
const defaultTokenLife = time.Hour

// tokenKey names a token: that of one path in one volume of one pod.
type tokenKey struct{ uid, volume, path string }

// token is one that a pod has, and when to get the next.
type token struct {
	text    string
	renewAt time.Time
}

// addToken adds a token of the pod's service account, bound to the pod, a new one when four fifths of its life are over. When none can
// be had, the one that there is stays.
func (b *Builder) addToken(ctx context.Context, pod *corev1.Pod, content payload, p *corev1.ServiceAccountTokenProjection, mode os.FileMode, volume string) error {
	key := tokenKey{string(pod.UID), volume, p.Path}
	now := b.options.Now()
	b.mu.Lock()
	current, have := b.tokens[key]
	b.mu.Unlock()
	if !have || !now.Before(current.renewAt) {
		account := pod.Spec.ServiceAccountName
		if account == "" {
			account = "default"
		}
		reply, err := b.options.Source.Token(ctx, pod.Namespace, account, tokenRequest(pod, p))
		if err != nil {
			// The error alone: a reply that came with it is not shown.
			return fmt.Errorf("token of service account %s/%s: %w", pod.Namespace, account, err)
		}
		current = token{text: reply.Status.Token, renewAt: renewal(now, reply.Status.ExpirationTimestamp.Time)}
		b.mu.Lock()
		b.tokens[key] = current
		b.mu.Unlock()
	}
	f := payloadFile{data: []byte(current.text), mode: mode, uid: -1, gid: -1}
	if uid := soleUser(pod); uid != nil {
		f.uid, f.mode = *uid, tokenMode
	}
	if fsGroup(pod) != nil {
		f.mode = tokenMode
	}
	content[clean(p.Path)] = f
	return nil
}

func tokenRequest(pod *corev1.Pod, p *corev1.ServiceAccountTokenProjection) *authenticationv1.TokenRequest {
	seconds := int64(defaultTokenLife / time.Second)
	if p.ExpirationSeconds != nil {
		seconds = *p.ExpirationSeconds
	}
	tr := &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{
		ExpirationSeconds: &seconds,
		BoundObjectRef:    &authenticationv1.BoundObjectReference{APIVersion: "v1", Kind: "Pod", Name: pod.Name, UID: pod.UID},
	}}
	if p.Audience != "" {
		tr.Spec.Audiences = []string{p.Audience}
	}
	return tr
}

// renewal is when four fifths of what is left of a token's life are over.
func renewal(now, expires time.Time) time.Time {
	life := expires.Sub(now)
	return now.Add(min(life/5*4, tokenMaxAge))
}

// forgetTokens drops those of a pod.
func (b *Builder) forgetTokens(uid string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	maps.DeleteFunc(b.tokens, func(key tokenKey, _ token) bool { return key.uid == uid })
}

// soleUser is the user that all containers of the pod run as; nil when they differ or leave it to their images.
func soleUser(pod *corev1.Pod) *int64 {
	var sole *int64
	for _, list := range [][]corev1.Container{pod.Spec.InitContainers, pod.Spec.Containers} {
		for i := range list {
			var uid *int64
			if s := list[i].SecurityContext; s != nil {
				uid = s.RunAsUser
			}
			if s := pod.Spec.SecurityContext; uid == nil && s != nil {
				uid = s.RunAsUser
			}
			if uid == nil || sole != nil && *sole != *uid {
				return nil
			}
			sole = uid
		}
	}
	return sole
}
