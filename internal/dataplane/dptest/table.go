package dptest

import "github.com/endpointd/endpointd/internal/model"

// Patches of a Service.
const (
	plain         = ""
	internalLocal = "spec: {internalTrafficPolicy: Local}"
	externalLocal = "spec: {externalTrafficPolicy: Local}"
	sticky        = "spec: {sessionAffinity: ClientIP, sessionAffinityConfig: {clientIP: {timeoutSeconds: 3600}}}"
)

// table is spec §3.4, row by row, as clients see it.
func table() []testCase {
	return append(append(append(basicRows(), policyRows()...), hintRows()...), flowRows()...)
}

func basicRows() []testCase {
	return []testCase{
		{"every frontend leads to all endpoints, from everywhere", func(c *Case) {
			c.set(plain, "a b x")
			c.want(
				"c node y peer outside -> cluster = a b x",
				"c node y peer outside -> nodeport = a b x",
				"c node y peer outside -> external = a b x",
				"c node y peer outside -> lb = a b x")
		}},
		{"an endpoint that is not ready gets nothing", func(c *Case) {
			c.set(plain, "a x:notready y")
			c.want("c node outside -> cluster = a y", "c node outside -> nodeport = a y")
			c.to("a:notready x y")
			c.want("c node outside -> cluster = x y", "c node outside -> lb = x y")
		}},
		{"a terminating endpoint gets nothing while another is ready", func(c *Case) {
			c.set(plain, "a x:terminating y:gone")
			c.want("c node outside -> cluster = a", "c node outside -> nodeport = a")
		}},
		{"serving terminating endpoints are used when none is ready", func(c *Case) {
			c.set(plain, "a:notready x:terminating y:gone b:terminating")
			c.want("c node outside -> cluster = x b", "c node outside -> lb = x b")
		}},
		{"no endpoints: refused at once", func(c *Case) {
			c.set(plain, "")
			none := []string{
				"a node x outside -> cluster refused", "a node x outside -> nodeport refused",
				"a node x outside -> external refused", "a node x outside -> lb refused",
			}
			c.want(none...)
			c.to("a:notready x:gone")
			c.want(none...)
			c.to("a x:gone")
			c.want("b node outside -> cluster = a", "b node outside -> nodeport = a")
			c.to("a:notready")
			c.want(none...)
		}},
		{"no endpoints of one family: refused in that family", func(c *Case) {
			c.set(plain, "a x")
			c.serve("b")
			c.must(c.Change(c.ctx, func(o *Objects) error {
				o.withoutSlices(c.Numbered, c.Key().Name, true)
				return nil
			}))
			c.want("ipv4 b node outside -> cluster = a x", "ipv6 b node outside -> cluster refused",
				"ipv4 b node outside -> lb = a x", "ipv6 b node outside -> lb refused")
		}},
		{"one family: the other has no frontends", func(c *Case) {
			c.set("spec: {clusterIPs: ['"+c.ClusterIP(false).String()+"'], ipFamilies: [IPv4], ipFamilyPolicy: SingleStack}", "a x")
			c.want("ipv4 b node outside -> cluster = a x", "ipv4 b node outside -> nodeport = a x",
				"ipv6 b node outside -> cluster dropped", "ipv6 outside -> nodeport refused")
		}},
		{"same port for TCP and UDP, each with its own endpoints", func(c *Case) {
			c.set(plain, "")
			c.serve("a", "x", "y")
			c.add("tcp", "a x", "ports: [{name: tcp, protocol: TCP, port: "+c.targetText()+"}]")
			c.add("udp", "y", "ports: [{name: udp, protocol: UDP, port: "+c.targetText()+"}]")
			c.want("tcp b node outside -> cluster = a x", "udp b node outside -> cluster = y", "tcp outside -> nodeport = a x", "udp outside -> nodeport = y")
		}},
		{"one protocol: the other is refused", func(c *Case) {
			c.set("spec: {ports: [{name: tcp, protocol: TCP, port: 80}]}", "a x")
			c.want("tcp b node outside -> cluster = a x", "udp b node outside -> cluster refused")
		}},
		{"a port of a ClusterIP that does not exist is refused", func(c *Case) {
			c.set(plain, "a x")
			c.want("a node x outside -> cluster:81 refused", "b -> cluster = a x")
		}},
		{"an address in the range of ClusterIPs that nobody has goes nowhere", func(c *Case) {
			c.set(plain, "a x")
			c.want("a node x outside -> free dropped", "b -> cluster = a x")
		}},
		{"a NodePort answers on the node's addresses for NodePorts alone", func(c *Case) {
			c.set(plain, "a x")
			c.want("b node outside -> nodeport = a x", "b node outside -> extra refused")
		}},
		{"a pod reaches itself through its Service", func(c *Case) {
			c.set(plain, "a")
			c.want("a -> cluster = a", "a -> nodeport = a", "a -> external = a", "a -> lb = a", "x -> cluster = a")
			c.to("x a")
			c.want("a x -> cluster = x a", "x -> nodeport = x a")
		}},
		{"the node itself is an endpoint", func(c *Case) {
			c.set(plain, "node")
			c.want("a node x outside -> cluster = node", "outside -> nodeport = node")
			c.to("node peer a")
			c.want("b node outside -> cluster = node peer a")
		}},
		{"endpoints come and go", func(c *Case) {
			for _, endpoints := range []string{"a", "a b", "a b c x y z", "z", "x y", "a b c", "", "c x"} {
				c.set(plain, endpoints)
				if endpoints == "" {
					c.want("b node outside -> cluster refused")
					continue
				}
				c.want("b node outside -> cluster = "+endpoints, "outside -> nodeport = "+endpoints)
			}
		}},
		{"frontends come and go", func(c *Case) {
			c.set(plain, "a x")
			c.want("b node outside -> cluster = a x", "b outside -> nodeport = a x", "outside -> external = a x", "outside -> lb = a x")
			c.set("{spec: {externalIPs: null}, status: null}", "a x")
			c.want("b node outside -> cluster = a x", "b outside -> nodeport = a x", "outside -> external dropped", "outside -> lb dropped")
			c.set("{spec: {type: ClusterIP, externalTrafficPolicy: null, ports: [{name: tcp, protocol: TCP, port: 80}, {name: udp, protocol: UDP, port: 80}]}}", "a x")
			c.want("b node outside -> cluster = a x", "b outside -> nodeport refused")
			c.clear()
			c.want("b node outside -> cluster dropped")
			c.set(plain, "a x")
			c.want("b node outside -> cluster = a x", "b outside -> nodeport = a x")
		}},
		{"a port that moves", func(c *Case) {
			c.set(plain, "a x")
			c.want("b node outside -> cluster = a x", "b node outside -> cluster:8080 refused")
			c.set("spec: {ports: [{name: tcp, protocol: TCP, port: 8080}, {name: udp, protocol: UDP, port: 8080}]}", "a x")
			c.want("b node outside -> cluster:8080 = a x", "b node outside -> cluster refused")
		}},
		{"load balancer with ipMode Proxy: its address is not the node's to answer", func(c *Case) {
			c.set("status: {loadBalancer: {ingress: [{ip: '"+c.LoadBalancerIP(false).String()+"', ipMode: Proxy}, {ip: '"+c.LoadBalancerIP(true).String()+"', ipMode: Proxy}]}}", "a x")
			c.want("b outside -> lb dropped", "outside -> nodeport = a x", "outside -> external = a x")
		}},
		{"a Service with another proxy is left alone", func(c *Case) {
			c.set("metadata: {labels: {service.kubernetes.io/service-proxy-name: other}}", "a x")
			c.want("b node outside -> cluster dropped", "b outside -> nodeport refused", "outside -> lb dropped")
			c.set(plain, "a x")
			c.want("b node outside -> cluster = a x", "outside -> nodeport = a x")
			c.set("metadata: {labels: {service.kubernetes.io/service-proxy-name: other}}", "a x")
			c.want("b node outside -> cluster dropped")
		}},
		{"a headless Service has no frontends", func(c *Case) {
			c.set("spec: {type: ClusterIP, clusterIP: None, clusterIPs: [None], externalIPs: null, externalTrafficPolicy: null}", "a x")
			c.want("b node outside -> cluster dropped", "b outside -> nodeport refused")
		}},
		{"this node knows better than the API what its pods are worth", func(c *Case) {
			c.set(plain, "a b")
			c.down(model.LocalDead, "a")
			c.want("c node outside -> cluster = b", "outside -> nodeport = b")
			c.down(model.LocalNotReady, "b")
			c.want("c node outside -> cluster = b") // better than none: another may be ready that the API has not told of yet
			c.up("a")
			c.want("c node outside -> cluster = a", "outside -> nodeport = a")
			c.down(model.LocalDead, "a", "b")
			c.want("c node outside -> cluster refused", "outside -> nodeport refused")
			c.up("a", "b")
			c.down(model.LocalDraining, "a")
			c.want("c node outside -> cluster = b")
			c.down(model.LocalDraining, "b")
			c.want("c node outside -> cluster = a b") // better than none
			c.up("a", "b")
			c.want("c node outside -> cluster = a b")
		}},
	}
}

func policyRows() []testCase {
	return []testCase{
		{"internal policy Local: only endpoints on this node", func(c *Case) {
			c.set(internalLocal, "a x y")
			c.want("b node x outside -> cluster = a", "b node outside -> nodeport = a x y", "outside -> lb = a x y", "b -> external = a x y")
		}},
		{"internal policy Local, no endpoint here: dropped", func(c *Case) {
			c.set(internalLocal, "x y")
			c.want("b node outside -> cluster dropped", "b node outside -> nodeport = x y")
			c.to("a:notready x")
			c.want("b node outside -> cluster dropped")
			c.to("a x")
			c.want("b node outside -> cluster = a")
		}},
		{"internal policy Local, no endpoint at all: refused", func(c *Case) {
			c.set(internalLocal, "")
			c.want("b node outside -> cluster refused", "outside -> nodeport refused")
		}},
		{"internal policy Local, a terminating endpoint here: used, whatever is ready elsewhere", func(c *Case) {
			c.set(internalLocal, "a:terminating x")
			c.want("b node outside -> cluster = a", "b outside -> nodeport = x")
		}},
		{"external policy Local: clients from outside reach endpoints here, with their own address", func(c *Case) {
			c.set(externalLocal, "a x y")
			c.want(
				"outside peer -> nodeport = a kept", "outside peer -> external = a kept", "outside peer -> lb = a kept",
				"b node outside -> cluster = a x y")
		}},
		{"external policy Local: clients in the cluster reach all endpoints", func(c *Case) {
			c.set(externalLocal, "a x y")
			c.want("b node -> nodeport = a x y", "b node -> external = a x y", "b node -> lb = a x y")
		}},
		{"external policy Local: pods of other nodes are in the cluster too", func(c *Case) {
			c.set(externalLocal, "a x y")
			c.want("z -> nodeport = a x y", "z -> external = a x y", "z -> lb = a x y")
			c.to("x y")
			c.want("z -> nodeport = x y", "z -> lb = x y")
		}},
		{"external policy Local, no endpoint here: dropped", func(c *Case) {
			c.set(externalLocal, "x y")
			c.want(
				"outside peer -> nodeport dropped", "outside peer -> external dropped", "outside peer -> lb dropped",
				"b node -> nodeport = x y", "b node -> lb = x y", "b outside -> cluster = x y")
			c.to("a x")
			c.want("outside -> nodeport = a kept")
			c.to("a:notready x")
			c.want("outside -> nodeport dropped")
		}},
		{"external policy Local, no endpoint at all: refused", func(c *Case) {
			c.set(externalLocal, "")
			c.want("outside -> nodeport refused", "outside -> lb refused", "b node -> lb refused")
		}},
		{"external policy Local, a terminating endpoint here: used, whatever is ready elsewhere", func(c *Case) {
			c.set(externalLocal, "a:terminating x")
			c.want("outside -> nodeport = a kept", "b node -> nodeport = x", "outside b -> cluster = x")
		}},
		{"both policies Local", func(c *Case) {
			c.set("spec: {internalTrafficPolicy: Local, externalTrafficPolicy: Local}", "a b x")
			c.want("c node outside -> cluster = a b", "outside -> lb = a b kept", "c node -> lb = a b x")
			c.to("x")
			c.want("c node outside -> cluster dropped", "outside -> lb dropped", "c node -> lb = x")
		}},
		{"a policy changes while there are clients", func(c *Case) {
			for range 2 {
				c.set(plain, "a x")
				c.want("b node -> cluster = a x", "outside -> nodeport = a x")
				c.set(externalLocal, "a x")
				c.want("b node -> cluster = a x", "outside -> nodeport = a kept")
				c.set(internalLocal, "a x")
				c.want("b node -> cluster = a", "outside -> nodeport = a x")
			}
		}},
		{"source ranges: others get no answer from the load balancer's address", func(c *Case) {
			c.set("spec: {loadBalancerSourceRanges: ['10.200.0.100/32', 'fd00:200::100/128', '10.244.1.2/31', 'fd00:244:0:1::2/127']}", "a x")
			c.want("outside a b -> lb = a x", "peer c y -> lb dropped",
				"outside peer c y node -> nodeport = a x", "outside peer c -> external = a x", "c node outside -> cluster = a x")
			c.set("spec: {loadBalancerSourceRanges: ['10.200.0.0/24', 'fd00:200::/64']}", "a x")
			c.want("outside peer -> lb = a x", "a y -> lb dropped")
			c.set(plain, "a x")
			c.want("a y outside peer -> lb = a x")
		}},
		{"source ranges and external policy Local", func(c *Case) {
			c.set("spec: {externalTrafficPolicy: Local, loadBalancerSourceRanges: ['10.200.0.100/32', 'fd00:200::100/128']}", "a x")
			c.want("outside -> lb = a kept", "peer -> lb dropped", "peer -> nodeport = a kept")
		}},
		{"source ranges and no endpoints", func(c *Case) {
			c.set("spec: {loadBalancerSourceRanges: ['10.200.0.100/32', 'fd00:200::100/128']}", "")
			c.want("outside -> lb refused", "outside peer -> nodeport refused")
		}},
	}
}

func hintRows() []testCase {
	return []testCase{
		{"zone hints keep traffic in the zone", func(c *Case) {
			c.set(plain, "a:zones=zone-1 x:zones=zone-2 y:zones=zone-1+zone-2")
			c.want("b node -> cluster = a y", "outside -> nodeport = a y")
		}},
		{"zone hints that one ready endpoint lacks mean nothing", func(c *Case) {
			c.set(plain, "a:zones=zone-1 x:zones=zone-2 y")
			c.want("b node -> cluster = a x y", "outside -> nodeport = a x y")
			c.to("a:zones=zone-1 x:zones=zone-2 y:notready")
			c.want("b node -> cluster = a")
		}},
		{"zone hints that leave nobody for this zone mean nothing", func(c *Case) {
			c.set(plain, "a:zones=zone-2 x:zones=zone-2")
			c.want("b node -> cluster = a x", "outside -> nodeport = a x")
		}},
		{"node hints keep traffic on the node", func(c *Case) {
			c.set(plain, "a:nodes=node-1,zones=zone-1 x:nodes=node-2,zones=zone-1 b:nodes=node-1,zones=zone-1")
			c.want("c node -> cluster = a b", "outside -> nodeport = a b")
		}},
		{"node hints that leave nobody for this node: zone hints", func(c *Case) {
			c.set(plain, "a:nodes=node-3,zones=zone-1 x:nodes=node-2,zones=zone-1 y:nodes=node-2,zones=zone-2")
			c.want("c node -> cluster = a x")
		}},
		{"hints and external policy Local", func(c *Case) {
			c.set(externalLocal, "a:zones=zone-2 b:zones=zone-1 x:zones=zone-1")
			c.want("outside -> nodeport = a b kept", "c -> nodeport = b x", "c -> cluster = b x")
		}},
	}
}
