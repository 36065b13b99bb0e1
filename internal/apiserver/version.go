package apiserver

import (
	"runtime/debug"
	"strings"

	"k8s.io/apimachinery/pkg/version"
	"k8s.io/apiserver/pkg/util/compatibility"
	basecompatibility "k8s.io/component-base/compatibility"
)

// effectiveVersion freezes the process-wide feature gates at the linked Kubernetes version and returns that version.
func effectiveVersion() (basecompatibility.EffectiveVersion, error) {
	registry := compatibility.DefaultComponentGlobalsRegistry
	if err := registry.Set(); err != nil {
		return nil, err
	}
	return namedVersion{registry.EffectiveVersionFor(basecompatibility.DefaultKubeComponent)}, nil
}

// namedVersion gives /version a semantic version that kubectl accepts also when the build did not set one with
// -X k8s.io/component-base/version.gitVersion: then it is that of the linked module.
type namedVersion struct {
	basecompatibility.EffectiveVersion
}

func (v namedVersion) Info() *version.Info {
	info := v.EffectiveVersion.Info()
	if strings.HasPrefix(info.GitVersion, "v0.0.0-") {
		info.GitVersion = "v" + v.BinaryVersion().String() + ".0"
		if build, ok := debug.ReadBuildInfo(); ok {
			for _, dep := range build.Deps {
				if dep.Path == "k8s.io/kubernetes" {
					info.GitVersion = dep.Version
				}
			}
		}
		info.GitCommit, info.GitTreeState = "", ""
	}
	return info
}
