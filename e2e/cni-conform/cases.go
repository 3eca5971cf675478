package conform

import "slices"

// Cases are all cases, by type.
func Cases() []Case {
	var out []Case
	for _, s := range Subjects() {
		add := func(name string, run func(*T)) { out = append(out, Case{Subject: s, Name: name, Run: run}) }
		add("no CNI_COMMAND: says what it is, exit code 0", (*T).about)
		add("VERSION lists what it speaks", (*T).version)
		for _, v := range s.versions() {
			add("ADD, CHECK, DEL in version "+v, func(t *T) { t.life(v) })
		}
		add("DEL twice, without CNI_NETNS, without prevResult", (*T).deletions)
		add("DEL when the namespace is gone leaves nothing on the host", (*T).goneNetns)
		add("DEL without CNI_NETNS leaves nothing on the host", (*T).noNetns)
		add("DEL of what was never added", (*T).neverAdded)
		add("bad environment: code 4 names the variable, nothing is made", (*T).badEnvironment)
		add("bad CNI_NETNS fails before anything is made", (*T).badNetns)
		add("bad stdin: codes 1, 6 and 7, nothing is made", (*T).badStdin)
		if s.Makes {
			add("an interface that exists: fails and leaves nothing", (*T).interfaceExists)
			add("an IPAM plugin that does not exist: fails and leaves nothing", (*T).noIPAM)
		}
		if s.Makes || s.Name == "host-local" {
			add("ADD twice is refused and spoils nothing", (*T).addTwice)
		}
		if s.Makes {
			add("CHECK finds what was taken away", (*T).checkFinds)
		}
		if len(s.Chain) > 1 {
			add("ADD without prevResult is refused", (*T).needsPrevious)
			add("the previous result comes through", (*T).passesThrough)
			add("CHECK without an attachment fails", (*T).checkNothing)
		}
		if s.Addrs {
			add("STATUS: 0, and 50 when no address is left", (*T).status)
			add("addresses: all of a range once, then an error, again after DEL", (*T).exhaustion)
			add("addresses of containers that died without DEL come back", (*T).lostDel)
		}
		add("STATUS in version 1.1.0", (*T).statusPlain)
		add("GC with an empty list removes everything of the network", (*T).gcEmpty)
		add("GC keeps what is listed, and other networks", (*T).gcKeeps)
		add("GC without a list is refused", (*T).gcNoList)
		add("16 ADD and 16 DEL at once", (*T).concurrent)
		add("SIGKILL before each mutating system call of ADD, then DEL", func(t *T) { t.kill("ADD") })
		add("SIGKILL before each mutating system call of DEL, then DEL", func(t *T) { t.kill("DEL") })
		if s.Makes {
			add("packets: host, outside and another container", (*T).traffic)
		}
		if s.Name == "portmap" {
			add("packets: host ports from outside, host, localhost, itself, its neighbour", (*T).hostPorts)
			add("packets: a host port takes nothing that only passes through", (*T).transit)
		}
		if s.Name == "bandwidth" {
			add("packets: both directions are limited", (*T).limited)
		}
	}
	return slices.Clip(out)
}
