package model

import (
	"cmp"
	"strings"
)

func compareServiceKeys(a, b ServiceKey) int {
	return cmp.Or(strings.Compare(a.Namespace, b.Namespace), strings.Compare(a.Name, b.Name))
}

// Compare orders by address, protocol and port.
func (k FrontendKey) Compare(other FrontendKey) int {
	return cmp.Or(k.Addr.Compare(other.Addr), cmp.Compare(k.Protocol, other.Protocol), cmp.Compare(k.Port, other.Port))
}
