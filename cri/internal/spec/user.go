package spec

import (
	"slices"
	"strconv"
	"strings"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-project/berth/proto/errs"
)

// User is who a container's process runs as.
type User struct {
	UID, GID uint32
	Groups   []uint32 // supplementary, the primary one among them
	Home     string
}

// Accounts are the parsed /etc/passwd and /etc/group of an image. They are untrusted: an entry whose numbers do
// not fit 31 bits is skipped.
type Accounts struct {
	users  []account
	groups []group
}

type account struct {
	name, home string
	uid, gid   uint32
}

type group struct {
	name    string
	gid     uint32
	members []string
}

// ParseAccounts reads passwd(5) and group(5) files; either may be nil.
func ParseAccounts(passwd, groups []byte) Accounts {
	var a Accounts
	for line := range strings.SplitSeq(string(passwd), "\n") {
		f := strings.Split(line, ":")
		if len(f) < 4 {
			continue
		}
		uid, err1 := id(f[2])
		gid, err2 := id(f[3])
		if err1 != nil || err2 != nil || f[0] == "" {
			continue
		}
		u := account{name: f[0], uid: uid, gid: gid}
		if len(f) > 5 {
			u.home = f[5]
		}
		a.users = append(a.users, u)
	}
	for line := range strings.SplitSeq(string(groups), "\n") {
		f := strings.Split(line, ":")
		if len(f) < 4 {
			continue
		}
		if gid, err := id(f[2]); err == nil && f[0] != "" {
			a.groups = append(a.groups, group{name: f[0], gid: gid, members: strings.Split(strings.TrimSpace(f[3]), ",")})
		}
	}
	return a
}

// id parses a user or group number: decimal ASCII digits, at most 2^31-1 (a larger one wraps in programs that
// keep it in an int: CVE-2024-40635).
func id(s string) (uint32, error) {
	n, err := strconv.ParseUint(s, 10, 31)
	if err != nil || (s != "0" && s[0] == '0') || s[0] == '+' {
		return 0, errs.InvalidArgument.Errorf("%q is no user or group number from 0 to 2147483647", s)
	}
	return uint32(n), nil
}

// ResolveUser finds who a container runs as: the pod's run_as_user or run_as_username, else the image's USER
// ("name", "uid", "name:group", "uid:gid"), else root.
func ResolveUser(sc *cri.LinuxContainerSecurityContext, imageUser string, a Accounts) (User, error) {
	var u User
	var name string
	var err error
	switch {
	case sc.GetRunAsUser() != nil:
		n := sc.GetRunAsUser().GetValue()
		if n < 0 || n > 1<<31-1 {
			return u, errs.InvalidArgument.Errorf("run_as_user %d: want 0 to 2147483647", n)
		}
		u, name = a.byID(uint32(n))
	case sc.GetRunAsUsername() != "":
		u, name, err = a.named(sc.GetRunAsUsername())
	case imageUser != "":
		u, name, err = a.imageUser(imageUser)
	default:
		u, name = a.byID(0)
	}
	if err != nil {
		return u, err
	}
	if g := sc.GetRunAsGroup(); g != nil {
		if g.GetValue() < 0 || g.GetValue() > 1<<31-1 {
			return u, errs.InvalidArgument.Errorf("run_as_group %d: want 0 to 2147483647", g.GetValue())
		}
		u.GID = uint32(g.GetValue())
	}
	u.Groups = []uint32{u.GID}
	if sc.GetSupplementalGroupsPolicy() != cri.SupplementalGroupsPolicy_Strict && name != "" {
		for _, g := range a.groups {
			if slices.Contains(g.members, name) {
				u.Groups = append(u.Groups, g.gid)
			}
		}
	}
	for _, g := range sc.GetSupplementalGroups() {
		if g < 0 || g > 1<<31-1 {
			return u, errs.InvalidArgument.Errorf("supplemental_groups: %d: want 0 to 2147483647", g)
		}
		u.Groups = append(u.Groups, uint32(g))
	}
	slices.Sort(u.Groups)
	u.Groups = slices.Compact(u.Groups)
	return u, nil
}

func (a Accounts) byID(uid uint32) (User, string) {
	for _, e := range a.users {
		if e.uid == uid {
			return User{UID: uid, GID: e.gid, Home: e.home}, e.name
		}
	}
	return User{UID: uid}, ""
}

func (a Accounts) named(s string) (User, string, error) {
	if numeric(s) {
		uid, err := id(s)
		if err != nil {
			return User{}, "", err
		}
		u, name := a.byID(uid)
		return u, name, nil
	}
	for _, e := range a.users {
		if e.name == s {
			return User{UID: e.uid, GID: e.gid, Home: e.home}, e.name, nil
		}
	}
	return User{}, "", errs.InvalidArgument.Errorf("user %q is not in the image's /etc/passwd", s)
}

func (a Accounts) imageUser(s string) (User, string, error) {
	who, grp, both := strings.Cut(s, ":")
	u, name, err := a.named(who)
	if err != nil {
		return u, "", errs.InvalidArgument.Errorf("the image's USER %q: %w", s, err)
	}
	if !both {
		return u, name, nil
	}
	if numeric(grp) {
		if u.GID, err = id(grp); err != nil {
			return u, "", errs.InvalidArgument.Errorf("the image's USER %q: %w", s, err)
		}
		return u, name, nil
	}
	for _, g := range a.groups {
		if g.name == grp {
			u.GID = g.gid
			return u, name, nil
		}
	}
	return u, "", errs.InvalidArgument.Errorf("the image's USER %q: group %q is not in its /etc/group", s, grp)
}

// numeric says that s starts like a number, so that it must be one: a passwd entry called "99999999999" does not
// make an overflowing number valid.
func numeric(s string) bool {
	return s != "" && (s[0] >= '0' && s[0] <= '9' || s[0] == '-' || s[0] == '+')
}
