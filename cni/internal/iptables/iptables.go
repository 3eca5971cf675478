// Package iptables keeps an attachment's rules in iptables, for nodes that must have them there: what a rule of
// nftables accepts, an iptables chain of the same hook may still drop. It is used where a configuration says
// "backend": "iptables" (or uses what only iptables has), never by itself.
//
// One read (iptables-save) and one transaction (iptables-restore --noflush) for each family and verb, instead of an
// exec for each rule: a killed process leaves all of a change or none. Chains and comments have the names that the
// upstream plugins give them, so that people and tools find them. What to write is compiled purely; only run touches
// the kernel.
package iptables

import (
	"bytes"
	"crypto/sha512"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
)

// Rules is what an attachment has, by family: enough to find it again. It is stored in the attachment's record.
type Rules struct {
	IPv4     *Family `json:"ipv4,omitempty"`
	IPv6     *Family `json:"ipv6,omitempty"`
	prepared bool
}

// Family is what is in the program of one family.
type Family struct {
	// Chains are its own, as table and name.
	Chains []Name `json:"chains,omitempty"`
	// Marks are parts of lines in shared chains by which its rules are known.
	Marks  []Mark `json:"marks,omitempty"`
	change Change
}

// Name is a chain of a table.
type Name struct {
	Table string `json:"table"`
	Chain string `json:"chain"`
}

// Mark is a part of a rule in a shared chain, as iptables-save writes it.
type Mark struct {
	Name
	Text string `json:"text"`
}

// Chain is a chain with its rules, without "-A NAME".
type Chain struct {
	Name
	Rules []string
}

// Jump is a rule in a shared chain. It is there if a line of the chain contains Mark.
type Jump struct {
	Name
	Rule, Mark string
	// First puts it before all others. Own ones go with the attachment; the others are every attachment's.
	First, Own bool
}

// Change is what one family shall have.
type Change struct {
	// Own chains are replaced as a whole.
	Own []Chain
	// Shared chains are made if they are missing.
	Shared []Name
	Jumps  []Jump
}

// tables are those in which rules can be, in the order in which they are changed: what a rule in the last one lets through is
// guarded by the first.
var tables = []string{"raw", "filter", "nat"}

// ChainName is upstream's name of an attachment's chain: 28 characters of prefix and hash.
func ChainName(prefix, network, containerID string) string {
	return fmt.Sprintf("%s%x", prefix, sha512.Sum512([]byte(network+containerID)))[:28]
}

// Comment is upstream's comment of an attachment's rules.
func Comment(prefix, network, containerID string) string {
	return fmt.Sprintf(`%sname: \"%s\" id: \"%s\"`, prefix, network, containerID)
}

// Compile makes the transaction that turns what iptables-save said into what change wants; empty if nothing is to be
// done. Own chains are always written: their rules are many and read back in other words.
func (c Change) Compile(saved string) string {
	var out strings.Builder
	for _, table := range tables {
		var heads, lines []string
		for _, s := range c.Shared {
			if s.Table == table && !hasChain(saved, s) {
				heads = append(heads, ":"+s.Chain+" - [0:0]")
			}
		}
		for _, o := range c.Own {
			if o.Table != table {
				continue
			}
			heads = append(heads, ":"+o.Chain+" - [0:0]")
			for _, r := range o.Rules {
				lines = append(lines, "-A "+o.Chain+" "+r)
			}
		}
		for _, j := range c.Jumps {
			switch {
			case j.Table != table || len(find(saved, Mark{j.Name, j.Mark})) > 0:
			case j.First:
				lines = append(lines, "-I "+j.Chain+" 1 "+j.Rule)
			default:
				lines = append(lines, "-A "+j.Chain+" "+j.Rule)
			}
		}
		write(&out, table, heads, lines)
	}
	return out.String()
}

func write(out *strings.Builder, table string, heads, lines []string) {
	if len(heads)+len(lines) == 0 {
		return
	}
	_, _ = fmt.Fprintf(out, "*%s\n%s\nCOMMIT\n", table, strings.Join(append(heads, lines...), "\n"))
}

// inTable are the lines of a table in what iptables-save said.
func inTable(saved, table string) string {
	_, rest, ok := strings.Cut("\n"+saved, "\n*"+table+"\n")
	if !ok {
		return ""
	}
	body, _, _ := strings.Cut(rest, "\nCOMMIT")
	return body
}

func hasChain(saved string, n Name) bool {
	return strings.Contains("\n"+inTable(saved, n.Table), "\n:"+n.Chain+" ")
}

// find lists the rules with a mark, without "-A ".
func find(saved string, m Mark) []string {
	var out []string
	for line := range strings.Lines(inTable(saved, m.Table)) {
		line = strings.TrimRight(line, "\n")
		if rule, ok := strings.CutPrefix(line, "-A "); ok && strings.HasPrefix(rule, m.Chain+" ") && strings.Contains(rule, m.Text) {
			out = append(out, rule)
		}
	}
	return out
}

// compileRemoval makes the transaction that takes rules out of what iptables-save said.
func (r *Family) compileRemoval(saved string) string {
	var out strings.Builder
	for _, table := range tables {
		var heads, lines []string
		for _, m := range r.Marks {
			if m.Table != table {
				continue
			}
			for _, rule := range find(saved, m) {
				lines = append(lines, "-D "+rule)
			}
		}
		for _, n := range r.Chains {
			if n.Table == table && hasChain(saved, n) {
				heads = append(heads, ":"+n.Chain+" - [0:0]") // flushes
				lines = append(lines, "-X "+n.Chain)
			}
		}
		write(&out, table, heads, lines)
	}
	return out.String()
}

// families calls fn for each family that the rules are of.
func (r *Rules) families(fn func(save, restore string, f *Family) error) error {
	var bad []error
	if r.IPv4 != nil {
		bad = append(bad, fn("iptables-save", "iptables-restore", r.IPv4))
	}
	if r.IPv6 != nil {
		bad = append(bad, fn("ip6tables-save", "ip6tables-restore", r.IPv6))
	}
	return errors.Join(bad...)
}

// Ensure makes the rules. They must be [New]'s: what was read from a record can only be removed and checked.
func Ensure(r *Rules) error {
	if !r.prepared {
		return errors.New("iptables: rules from a record cannot be made again")
	}
	return r.families(func(save, restore string, f *Family) error {
		saved, err := run(save, "")
		if err != nil {
			return err
		}
		_, err = run(restore, f.change.Compile(saved), "--noflush", "--wait", "10")
		return err
	})
}

// New is what an attachment gets; a family whose change is nil has no rules.
func New(v4, v6 *Change) *Rules { return &Rules{prepared: true, IPv4: v4.family(), IPv6: v6.family()} }

func (c *Change) family() *Family {
	if c == nil {
		return nil
	}
	f := &Family{change: *c}
	for _, o := range c.Own {
		f.Chains = append(f.Chains, o.Name)
	}
	for _, j := range c.Jumps {
		if m := (Mark{j.Name, j.Mark}); j.Own && !slices.Contains(f.Marks, m) {
			f.Marks = append(f.Marks, m)
		}
	}
	return f
}

// Remove takes the rules out, whatever of them is there.
func Remove(r *Rules) error {
	return r.families(func(save, restore string, f *Family) error {
		saved, err := run(save, "")
		if err != nil {
			return err
		}
		text := f.compileRemoval(saved)
		if text == "" {
			return nil
		}
		_, err = run(restore, text, "--noflush", "--wait", "10")
		return err
	})
}

// Missing lists which of the rules are not there.
func Missing(r *Rules) ([]string, error) { return Saved{}.Missing(r) }

// Saved is what a node has in iptables, read once by each program that is asked, for many rules to be looked up in.
type Saved map[string]string

// Missing lists which of the rules are not in what is saved.
func (s Saved) Missing(r *Rules) ([]string, error) {
	var missing []string
	err := r.families(func(save, _ string, f *Family) error {
		saved, known := s[save]
		if !known {
			var err error
			if saved, err = run(save, ""); err != nil {
				return err
			}
			s[save] = saved
		}
		for _, n := range f.Chains {
			if !hasChain(saved, n) {
				missing = append(missing, fmt.Sprintf("%s: chain %s of table %s", save, n.Chain, n.Table))
			}
		}
		for _, m := range f.Marks {
			if len(find(saved, m)) == 0 {
				missing = append(missing, fmt.Sprintf("%s: the rule with %s in chain %s", save, m.Text, m.Chain))
			}
		}
		return nil
	})
	return missing, err
}

// run starts one of the programs.
func run(program, stdin string, args ...string) (string, error) {
	path, err := lookup(program)
	if err != nil {
		return "", err
	}
	cmd := exec.Command(path, args...)
	cmd.Stdin = strings.NewReader(stdin)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("%s: %w: %s", program, err, strings.TrimSpace(stderr.String()))
	}
	return stdout.String(), nil
}

// Installed fails if one of the programs is missing: before anything is written that only they could take away.
func Installed() error {
	for _, p := range []string{"iptables-save", "iptables-restore", "ip6tables-save", "ip6tables-restore"} {
		if _, err := lookup(p); err != nil {
			return err
		}
	}
	return nil
}

// lookup finds a program in PATH or, where a runtime passes none on, in the usual directories.
func lookup(program string) (string, error) {
	path, err := exec.LookPath(program)
	for _, dir := range []string{"/usr/sbin/", "/sbin/", "/usr/local/sbin/"} {
		if err == nil || os.Getenv("PATH") != "" {
			break
		}
		path, err = exec.LookPath(dir + program)
	}
	if err != nil {
		return "", fmt.Errorf("the iptables backend needs %s, which is not installed: install iptables, or use \"backend\": \"nftables\"", program)
	}
	return path, nil
}
