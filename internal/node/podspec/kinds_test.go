package podspec

import (
	"reflect"
	"strings"

	corev1 "k8s.io/api/core/v1"
)

type volumeKind struct {
	name   string // as in a manifest
	source corev1.VolumeSource
}

// volumeKinds is one volume of each kind that the API has.
func volumeKinds() []volumeKind {
	var kinds []volumeKind
	for i := range reflect.TypeFor[corev1.VolumeSource]().NumField() {
		var source corev1.VolumeSource
		field := reflect.TypeFor[corev1.VolumeSource]().Field(i)
		reflect.ValueOf(&source).Elem().Field(i).Set(reflect.New(field.Type.Elem()))
		name, _, _ := strings.Cut(field.Tag.Get("json"), ",")
		kinds = append(kinds, volumeKind{name, source})
	}
	return kinds
}
