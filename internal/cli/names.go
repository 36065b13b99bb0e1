package cli

import (
	"net/netip"
	"strings"
	"time"

	"github.com/miekg/dns"
	"github.com/spf13/pflag"

	"github.com/endpointd/endpointd/internal/app"
	"github.com/endpointd/endpointd/internal/dns/forward"
	"github.com/endpointd/endpointd/internal/dns/server"
)

// namesFlags say how names are answered.
type namesFlags struct {
	upstreams  []string
	clients    []string
	transfers  []string
	resolvConf string
	ttl        time.Duration
	log        string
	logClients []string
}

func (f *namesFlags) register(flags *pflag.FlagSet) {
	flags.StringArrayVar(&f.upstreams, "dns-upstream", nil, "who is asked for names that are not the cluster's: [DOMAIN=]`ADDRESS[,ADDRESS]`, also tls://ADDRESS#NAME, or none if there are no such names; once for each domain (default: the name servers of --resolv-conf)")
	flags.StringVar(&f.resolvConf, "resolv-conf", "/etc/resolv.conf", "`file` with this machine's name servers and search domains")
	flags.StringSliceVar(&f.clients, "dns-allow", nil, "`ranges` of addresses that may ask besides the cluster's nodes and pods and this machine, with commas in between")
	flags.StringSliceVar(&f.transfers, "dns-transfer", nil, "`ranges` of addresses that may ask, and transfer the cluster's zone (AXFR), with commas in between")
	flags.DurationVar(&f.ttl, "dns-ttl", 5*time.Second, "how long clients may remember an address of a Service; the annotation endpointd.io/dns-ttl of a Service goes before it")
	flags.StringVar(&f.log, "log-queries", "", "log DNS questions and their answers, at most 100 a second; with =`SUFFIX` those for names that end so")
	flags.Lookup("log-queries").NoOptDefVal = "."
	flags.StringSliceVar(&f.logClients, "log-clients", nil, "`addresses` or ranges of those whose questions are logged, with commas in between")
}

// noUpstream is given instead of addresses for a domain in which there is nothing.
const noUpstream = "none"

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
	if o.Transfers, err = parsePrefixes("dns-transfer", f.transfers); err != nil {
		return o, err
	}
	if o.Log, err = logFilter(f.log, f.logClients); err != nil {
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
		if list == noUpstream {
			o.Upstreams[domain] = []forward.Upstream{}
			continue
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

// logFilter is nil if nothing is to be logged.
func logFilter(suffix string, clients []string) (*server.LogFilter, error) {
	if suffix == "" && len(clients) == 0 {
		return nil, nil //nolint:nilnil // it is documented
	}
	if _, ok := dns.IsDomainName(suffix); !ok && suffix != "" {
		return nil, flagError("log-queries", "%q is no domain name, like default.svc.cluster.local", suffix)
	}
	ranges, err := parseClients("log-clients", clients)
	if err != nil {
		return nil, err
	}
	return &server.LogFilter{Suffix: suffix, Clients: ranges}, nil
}

// parseClients reads addresses and ranges of them.
func parseClients(flag string, texts []string) ([]netip.Prefix, error) {
	var ranges []netip.Prefix
	for _, text := range texts {
		if addr, err := netip.ParseAddr(text); err == nil && addr.Zone() == "" {
			ranges = append(ranges, netip.PrefixFrom(addr.Unmap(), addr.Unmap().BitLen()))
			continue
		}
		r, err := parsePrefixes(flag, []string{text})
		if err != nil {
			return nil, err
		}
		ranges = append(ranges, r...)
	}
	return ranges, nil
}
