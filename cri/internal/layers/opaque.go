package layers

import "path"

// opaques remembers which directories of a layer hide what is below them, through removals of them and of what is
// above them. The kernel's mark for it is an attribute that the unpacker has no right to read or write.
type opaques struct {
	clock int
	set   map[string]int // path -> when it was made opaque
	gone  map[string]int // path -> when what was there was removed
}

func newOpaques() opaques { return opaques{set: map[string]int{}, gone: map[string]int{}} }

// add notes an opaque directory; false says that it was one.
func (o *opaques) add(p string) bool {
	_, known := o.set[p]
	o.clock++
	o.set[p] = o.clock
	return !known
}

// removed notes that nothing made before is at p or below; true says that this took memory.
func (o *opaques) removed(p string) bool {
	if len(o.set) == 0 {
		return false
	}
	_, known := o.gone[p]
	o.clock++
	o.gone[p] = o.clock
	return !known
}

// is tells whether the directory that is at p now is opaque.
func (o *opaques) is(p string) bool {
	at, ok := o.set[p]
	if !ok {
		return false
	}
	for q := p; q != "."; q = path.Dir(q) {
		if o.gone[q] > at {
			return false
		}
	}
	return true
}

// covers tells whether dir or a directory above it is opaque.
func (o *opaques) covers(dir string) bool {
	if len(o.set) == 0 || dir == "" {
		return false
	}
	for q := dir; q != "."; q = path.Dir(q) {
		if o.is(q) {
			return true
		}
	}
	return false
}

// live lists the opaque directories, in no order.
func (o *opaques) live() []string {
	var out []string
	for p := range o.set {
		if o.is(p) {
			out = append(out, p)
		}
	}
	return out
}

// hides makes the directory at p opaque.
func (a *applier) hides(p string) error {
	if a.opaques.add(p) {
		return a.remember(p)
	}
	return nil
}
