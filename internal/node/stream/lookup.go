package stream

import (
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
)

// externalClass is the runtimeClassName of pods that run elsewhere.
const externalClass = "external"

// httpError is an answer other than 200.
type httpError struct {
	code int
	text string
}

func (e *httpError) Error() string { return e.text }

func refuse(code int, format string, args ...any) error {
	return &httpError{code, fmt.Sprintf(format, args...)}
}

// pod finds the pod that a path names, and its UID where there is one.
func (s *Server) pod(r *http.Request) (*corev1.Pod, error) {
	namespace, name := r.PathValue("namespace"), r.PathValue("pod")
	pod, ok := s.o.Pods.Lookup(namespace, name)
	if !ok {
		return nil, refuse(http.StatusNotFound, "pod %q does not exist", name)
	}
	if uid := r.PathValue("uid"); uid != "" && uid != string(pod.UID) {
		return nil, refuse(http.StatusNotFound, "pod %q with UID %s does not exist: its UID is %s", name, uid, pod.UID)
	}
	return pod, nil
}

// running finds the pod and the container that a path names, which must run here.
func (s *Server) running(r *http.Request) (*corev1.Pod, string, error) {
	pod, err := s.pod(r)
	if err != nil {
		return nil, "", err
	}
	name := r.PathValue("container")
	if !specified(pod, name) {
		return nil, "", refuse(http.StatusNotFound, "container not found (%q)", name)
	}
	if err := notExternal(pod, name); err != nil {
		return nil, "", err
	}
	status, ok := statusOf(pod, name)
	switch {
	case !ok:
		return nil, "", refuse(http.StatusBadRequest, "container %q in pod %q is not available", name, pod.Name)
	case status.State.Running != nil:
		return pod, name, nil
	case status.State.Terminated != nil:
		return nil, "", refuse(http.StatusBadRequest, "container %q in pod %q is terminated", name, pod.Name)
	default:
		return nil, "", waitingToStart(pod, status)
	}
}

func notExternal(pod *corev1.Pod, name string) error {
	if class := pod.Spec.RuntimeClassName; class != nil && *class == externalClass {
		return refuse(http.StatusBadRequest,
			"container %q in pod %q runs elsewhere (runtimeClassName %s): this node cannot look inside", name, pod.Name, externalClass)
	}
	return nil
}

// waitingToStart says in the kubelet's words why there is nothing yet.
func waitingToStart(pod *corev1.Pod, status corev1.ContainerStatus) error {
	why := "no logs yet"
	if waiting := status.State.Waiting; waiting != nil {
		switch why = waiting.Reason; why {
		case "ErrImagePull":
			why = "image can't be pulled"
		case "ImagePullBackOff":
			why = "trying and failing to pull image"
		}
	}
	return refuse(http.StatusBadRequest, "container %q in pod %q is waiting to start: %s", status.Name, pod.Name, why)
}

// specified says whether a pod is to have a container of this name.
func specified(pod *corev1.Pod, name string) bool {
	named := func(c corev1.Container) bool { return c.Name == name }
	return slices.ContainsFunc(pod.Spec.Containers, named) || slices.ContainsFunc(pod.Spec.InitContainers, named) ||
		slices.ContainsFunc(pod.Spec.EphemeralContainers, func(c corev1.EphemeralContainer) bool { return c.Name == name })
}

func statusOf(pod *corev1.Pod, name string) (corev1.ContainerStatus, bool) {
	for _, list := range [][]corev1.ContainerStatus{
		pod.Status.ContainerStatuses, pod.Status.InitContainerStatuses, pod.Status.EphemeralContainerStatuses,
	} {
		if i := slices.IndexFunc(list, func(c corev1.ContainerStatus) bool { return c.Name == name }); i >= 0 {
			return list[i], true
		}
	}
	return corev1.ContainerStatus{}, false
}

// attemptOf reads the attempt from a container ID, which is process://<pod UID>/<name>/<attempt>.
func attemptOf(id string) (int, error) {
	attempt, err := strconv.Atoi(id[strings.LastIndexByte(id, '/')+1:])
	if err != nil || attempt < 0 {
		return 0, fmt.Errorf("container ID %q is not one of this runtime's: it does not end in the number of the attempt", id)
	}
	return attempt, nil
}

// fail answers with an error.
func (s *Server) fail(w http.ResponseWriter, r *http.Request, err error) {
	if refused, ok := err.(*httpError); ok { //nolint:errorlint // refuse's own results, which nobody wraps
		writeError(w, refused.code, "%s", refused.text)
		return
	}
	s.o.Logger.WarnContext(r.Context(), "a request to the node's API failed", "path", short(r.URL.Path), "err", err)
	writeError(w, http.StatusInternalServerError, "%s", err.Error())
}

// short bounds what a client can make a line of the log be.
func short(text string) string {
	const enough = 256
	if len(text) > enough {
		return strings.ToValidUTF8(text[:enough], "") + "…"
	}
	return text
}
