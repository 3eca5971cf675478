package mutants

// addresses are of who has which address.
func addresses() []Mutant {
	return []Mutant{
		{
			Name: "addresses: block's checksum not compared", File: "cni/internal/ipam/pool.go", Old: "checksum(buf[:blockSize-4], n+1) != sum) {", New: "false) {",
			Package: "cni/internal/ipam", Test: "TestEveryDamageIsSeen", Why: "a torn block gives an address to two pods",
		},
		{
			Name: "addresses: one by name is given twice", File: "cni/internal/ipam/take.go", Old: "	if v == taken {\n		return errs.AlreadyExists", New: "	if v == taken && false {\n		return errs.AlreadyExists",
			Package: "cni/internal/ipam", Test: "TestExact", Why: "two pods with one static address",
		},
		{
			Name: "addresses: no rest before they come back", File: "cni/internal/ipam/take.go", Old: "if v == never || rested >= int64(cooldown) || rested < 0 {", New: "if v == never || rested >= 0 || rested < 0 {",
			Package: "cni/internal/ipam", Test: "TestOrderAndCooldown", Why: "a new pod gets the traffic of the one that just ended",
		},
		{
			Name: "addresses: turn not kept", File: "cni/internal/ipam/take.go", Old: "	p.cursor = slot + 1\n", New: "	p.cursor = first\n",
			Package: "cni/internal/ipam", Test: "TestTurn", Why: "the address that was just released is the next to be given",
		},
		{
			Name: "addresses: rebuilt without releasing", File: "cni/internal/ipam/take.go", Old: "if v == taken && !want[n*perBlock+uint32(i)] {", New: "if v == taken && false {",
			Package: "cni/internal/ipam", Test: "TestReset", Why: "each killed ADD leaks an address until the range is empty",
		},
		{
			Name: "leases: an existing one is overwritten", File: "cni/internal/hostlocal/dir.go", Old: "	err = os.Link(tmp, d.file(a))\n", New: "	err = os.WriteFile(d.file(a), []byte(h.text()), 0o600)\n",
			Package: "cni/internal/hostlocal", Test: "TestSharesWithUpstream", Why: "an address that upstream's plugin gave is given again",
		},
		{
			Name: "leases: anybody's is released", File: "cni/internal/hostlocal/dir.go", Old: "	if err != nil || !mine {\n		return err\n	}\n	if err := os.Remove(d.file(a))", New: "	if err != nil || !mine && false {\n		return err\n	}\n	if err := os.Remove(d.file(a))",
			Package: "cni/internal/hostlocal", Test: "TestReleaseIsTheHoldersAlone", Why: "a late DEL frees the address of the pod that has it now",
		},
		{
			Name: "leases: directory not locked", File: "cni/internal/hostlocal/dir.go", Old: "if err = unix.Flock(int(f.Fd()), unix.LOCK_EX); !errors.Is(err, unix.EINTR) {", New: "if !errors.Is(err, unix.EINTR) {",
			Package: "cni/internal/hostlocal", Test: "TestLocksOutUpstream", Why: "upstream's process and ours pick the same address",
		},
	}
}

// attachments are of ADD and DEL.
func attachments() []Mutant {
	return []Mutant{
		{
			Name: "state: not locked", File: "cni/internal/state/store.go", Old: "error {\n	err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)\n", New: "error {\n	err := error(nil)\n",
			Package: "cni/test", Test: "TestParallel", Why: "parallel ADDs give one address to two pods",
		},
		{
			Name: "state: begun though nobody waits any more", File: "cni/internal/state/store.go", Old: "			return wanted()\n", New: "			return nil\n",
			Package: "cni/internal/state", Test: "TestWaiting", Why: "a pod is attached that its runtime has given up, after the DEL that was to undo it",
		},
		{
			Name: "state: unfinished ADDs are kept", File: "cni/internal/podnet/repair.go", Old: "		if !r.Pending {\n", New: "		if r.Version > 0 {\n",
			Package: "cni/test", Test: "TestKilledAtEachFailpoint", Why: "an ADD that was killed keeps its address and its link",
		},
		{
			Name: "state: records of another boot are believed", File: "cni/internal/podnet/repair.go", Old: "	if !n.store.SameBoot() {\n", New: "	if !n.store.SameBoot() && false {\n",
			Package: "cni/test", Test: "TestAnotherBoot", Why: "after a reboot the rules of pods that are gone are made again",
		},
		{
			Name: "ADD: no rollback", File: "cni/internal/podnet/add.go", Old: "		err = errors.Join(err, n.detach(rec))\n", New: "		_ = n.detach\n",
			Package: "cni/test", Test: "TestInterfaceExists", Why: "an ADD that fails keeps what it had made",
		},
		{
			Name: "ADD: a second one of the same attachment", File: "cni/internal/podnet/add.go", Old: "	if err := n.refuseDuplicate(link, a); err != nil {", New: "	if err := error(nil); err != nil {",
			Package: "cni/test", Test: "TestSecondAdd", Why: "the first attachment's record is overwritten and its address leaks",
		},
		{
			Name: "DEL: somebody else's link of the same name", File: "cni/internal/podnet/del.go", Old: "if l.Alias != \"\" && !strings.HasPrefix(l.Alias, \"berth \") {", New: "if l.Alias != \"\" && strings.HasPrefix(l.Alias, \"nobody \") {",
			Package: "cni/test", Test: "TestForeignLinkStays", Why: "an interface that is not ours is deleted",
		},
		{
			Name: "DEL: record goes before the link", File: "cni/internal/podnet/del.go", Old: "	small, err := n.dropRules(rec)\n", New: "	_ = n.store.Remove(rec.Name())\n	small, err := n.dropRules(rec)\n",
			Package: "cni/test", Test: "TestKilledAtEachFailpoint", Why: "a DEL that was killed has forgotten what is left to do",
		},
		{
			Name: "a pod may send as anybody", File: "cni/internal/ruleset/rules.go", Old: "	add(chain, nft.Counter(), nft.Drop())\n}\n\nfunc portRules", New: "	add(chain, nft.Counter(), nft.Return())\n}\n\nfunc portRules",
			Package: "cni/test", Test: "TestSpoofing", Why: "a pod answers for another's address",
		},
	}
}

// routes are of berth-netd.
func routes() []Mutant {
	const filter = "cni/internal/bgp/filter.go"
	return []Mutant{
		{
			Name: "BGP: whatever a peer says is a route", File: filter, Old: "	return inOne(prefix, c.Pools) || p.Internal(c) && inOne(prefix, c.Services)\n", New: "	return true\n",
			Package: "cni/internal/bgp", Test: "TestAdmits", Why: "a peer's mistake takes the node's own network away",
		},
		{
			Name: "BGP: a default route lies in a pool of everything", File: filter, Old: "return prefix.Bits() > 0 && slices", New: "return slices",
			Package: "cni/internal/bgp", Test: "TestAdmits", Why: "all of a node's traffic goes to a peer",
		},
		{
			Name: "BGP: a stranger is a peer", File: filter, Old: "	if !ok {\n		return false\n	}\n	for _, r := range p.Import {", New: "	if !ok {\n		return c.InPools(prefix)\n	}\n	for _, r := range p.Import {",
			Package: "cni/internal/bgp", Test: "TestAdmits", Why: "who is not configured has routes",
		},
	}
}
