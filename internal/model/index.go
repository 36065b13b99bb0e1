package model

import "iter"

// index is what a Snapshot is looked up in.
type index struct{}

func (index) services() iter.Seq[*Service]                    { panic("index") }
func (index) service(ServiceKey) *Service                     { panic("index") }
func (index) changed(now, was *Snapshot) iter.Seq[ServiceKey] { panic("index") }
func (index) len() int                                        { panic("index") }
func (index) owner(FrontendKey) *Service                      { panic("index") }
