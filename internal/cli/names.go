package cli

import (
	"strings"
	"time"

	"github.com/miekg/dns"
	"github.com/spf13/pflag"

	"github.com/endpointd/endpointd/internal/app"
	"github.com/endpointd/endpointd/internal/dns/forward"
)

// namesFlags say how names are answered.
type namesFlags struct {
	upstreams  []string
	clients    []string
	resolvConf string
	ttl        time.Duration
}

func (f *namesFlags) register(flags *pflag.FlagSet) {
	flags.StringArrayVar(&f.upstreams, "dns-upstream", nil, "who is asked for names that are not the cluster's: [DOMAIN=]`ADDRESS[,ADDRESS]`, also tls://ADDRESS#NAME; once for each domain (default: the name servers of --resolv-conf)")
	flags.StringVar(&f.resolvConf, "resolv-conf", "/etc/resolv.conf", "`file` with this machine's name servers and search domains")
	flags.StringSliceVar(&f.clients, "dns-allow", nil, "`ranges` of addresses that may ask besides the cluster's nodes and pods and this machine, with commas in between")
	flags.DurationVar(&f.ttl, "dns-ttl", 5*time.Second, "how long clients may remember an address of a Service; the annotation endpointd.io/dns-ttl of a Service goes before it")
}

// noTTL is how [app.NamesOptions] says 0 s.
const noTTL = -1

func (f *namesFlags) options() (app.NamesOptions, error) {
	o := app.NamesOptions{ResolvConf: f.resolvConf, TTL: f.ttl, Upstreams: map[string][]forward.Upstream{}}
	switch {
	case f.ttl < 0 || f.ttl%time.Second != 0:
		return o, flagError("dns-ttl", "%v is not a number of whole seconds, like 5s", f.ttl)
	case f.ttl == 0:
		o.TTL = noTTL
	}
	var err error
	if o.Clients, err = parsePrefixes("dns-allow", f.clients); err != nil {
		return o, err
	}
	for _, text := range f.upstreams {
		domain, list, found := strings.Cut(text, "=")
		if !found {
			domain, list = ".", text
		}
		if _, ok := dns.IsDomainName(domain); !ok || domain == "" {
			return o, flagError("dns-upstream", "%q is no domain name: write DOMAIN=ADDRESS, such as corp.example=10.0.0.53", domain)
		}
		domain = dns.CanonicalName(domain)
		if _, twice := o.Upstreams[domain]; twice {
			return o, flagError("dns-upstream", "%s is there twice: write all its addresses with commas in between", domain)
		}
		for item := range strings.SplitSeq(list, ",") {
			u, err := forward.ParseUpstream(item)
			if err != nil {
				return o, flagError("dns-upstream", "%w", err)
			}
			o.Upstreams[domain] = append(o.Upstreams[domain], u)
		}
	}
	return o, nil
}
