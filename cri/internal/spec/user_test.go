package spec_test

import (
	"errors"
	"math"
	"slices"
	"strings"
	"testing"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-project/berth/cri/internal/spec"
	"github.com/berth-project/berth/proto/errs"
)

// The accounts of a hostile image: numbers as names, numbers that overflow, lines that are cut short.
const (
	passwd = "root:x:0:0:root:/root:/bin/sh\nweb:x:1000:1000::/srv:/bin/sh\n99999999999:x:0:0::/:/bin/sh\n" +
		"4294967296:x:0:0::/:\nbig:x:4294967296:0::/:\nneg:x:-1:0::/:\nhex:x:0x0:0::/:\nlead:x:00:0::/:\n" +
		":x:0:0::/:\nshort:x:0\nalias:x:1000:1000::/other:\n\x00bin:x:7:7::/:\n"
	groups = "root:x:0:\nweb:x:1000:\nextra:x:3000:web,other\nmore:x:3001:other,web \nwheel:x:0:web\nbig:x:2147483648:web\nbad:x:-5:web\n" +
		"1234:x:9:web\nnomembers:x:77\n"
)

func TestResolveUser(t *testing.T) {
	accounts := spec.ParseAccounts([]byte(passwd), []byte(groups))
	n := func(v int64) *cri.Int64Value { return &cri.Int64Value{Value: v} }
	const strict = cri.SupplementalGroupsPolicy_Strict
	for _, c := range []struct {
		image    string
		sc       *cri.LinuxContainerSecurityContext
		uid, gid uint32
		groups   []uint32
		fails    bool
	}{
		// nobody says: root, with the groups that name root as their user, and the primary one
		{"", nil, 0, 0, []uint32{0}, false},
		{"root", nil, 0, 0, []uint32{0}, false},
		{"web", nil, 1000, 1000, []uint32{0, 9, 1000, 3000, 3001}, false},
		{"1000", nil, 1000, 1000, []uint32{0, 9, 1000, 3000, 3001}, false},
		{"web:extra", nil, 1000, 3000, []uint32{0, 9, 3000, 3001}, false},
		{"web:5", nil, 1000, 5, []uint32{0, 5, 9, 3000, 3001}, false},
		{"5000", nil, 5000, 0, []uint32{0}, false},
		{"5000:6000", nil, 5000, 6000, []uint32{6000}, false},
		// what an image must not get away with (CVE-2024-40635, CVE-2026-46680)
		{image: "4294967296", fails: true},
		{image: "2147483648", fails: true},
		{image: "-1", fails: true},
		{image: "+0", fails: true},
		{image: "0x0", fails: true},
		{image: "00", fails: true},
		{image: "１", fails: true},
		{image: "1000:abc", fails: true},
		{image: "1000:-1", fails: true},
		{image: "1000:2147483648", fails: true},
		{image: "1000:", fails: true},
		{image: ":1000", fails: true},
		{image: "99999999999", fails: true},
		{image: "big", fails: true},
		{image: "neg", fails: true},
		{image: "hex", fails: true},
		{image: "lead", fails: true},
		{image: "short", fails: true},
		{image: "nobody-knows", fails: true},
		{image: "web:big", fails: true},
		{image: "web:nomembers", fails: true},
		{image: " web", fails: true},
		// the pod's word replaces the image's, also a bad one
		{"0x0", &cri.LinuxContainerSecurityContext{RunAsUser: n(1000)}, 1000, 1000, []uint32{0, 9, 1000, 3000, 3001}, false},
		{"web:extra", &cri.LinuxContainerSecurityContext{RunAsUser: n(7)}, 7, 7, []uint32{7}, false},
		{"", &cri.LinuxContainerSecurityContext{RunAsUser: n(0), RunAsGroup: n(8)}, 0, 8, []uint32{8}, false},
		{"", &cri.LinuxContainerSecurityContext{RunAsUsername: "web", RunAsGroup: n(8)}, 1000, 8, []uint32{0, 8, 9, 3000, 3001}, false},
		{sc: &cri.LinuxContainerSecurityContext{RunAsUsername: "99999999999"}, fails: true},
		{sc: &cri.LinuxContainerSecurityContext{RunAsUsername: "4294967296"}, fails: true},
		{sc: &cri.LinuxContainerSecurityContext{RunAsUser: n(-1)}, fails: true},
		{sc: &cri.LinuxContainerSecurityContext{RunAsUser: n(math.MaxUint32 + 1)}, fails: true},
		{sc: &cri.LinuxContainerSecurityContext{RunAsUser: n(1 << 31)}, fails: true},
		{sc: &cri.LinuxContainerSecurityContext{RunAsUser: n(1), RunAsGroup: n(-1)}, fails: true},
		{sc: &cri.LinuxContainerSecurityContext{SupplementalGroups: []int64{1 << 31}}, fails: true},
		// the image's groups are added under Merge, never under Strict; the primary one is always among them
		{"web", &cri.LinuxContainerSecurityContext{SupplementalGroups: []int64{500, 3000}}, 1000, 1000, []uint32{0, 9, 500, 1000, 3000, 3001}, false},
		{"web", &cri.LinuxContainerSecurityContext{SupplementalGroupsPolicy: strict}, 1000, 1000, []uint32{1000}, false},
		{"web", &cri.LinuxContainerSecurityContext{SupplementalGroupsPolicy: strict, SupplementalGroups: []int64{500}, RunAsUser: n(1000), RunAsGroup: n(8)}, 1000, 8, []uint32{8, 500}, false},
	} {
		u, err := spec.ResolveUser(c.sc, c.image, accounts)
		if c.fails {
			if !errors.Is(err, errs.InvalidArgument) {
				t.Errorf("USER %q, %v: %+v, %v; want it refused", c.image, c.sc, u, err)
			}
			continue
		}
		if err != nil || u.UID != c.uid || u.GID != c.gid || !slices.Equal(u.Groups, c.groups) {
			t.Errorf("USER %q, %v: %d:%d %v, %v; want %d:%d %v", c.image, c.sc, u.UID, u.GID, u.Groups, err, c.uid, c.gid, c.groups)
		}
	}
}

func FuzzParseAccounts(f *testing.F) {
	f.Add([]byte(passwd), []byte(groups))
	f.Fuzz(func(t *testing.T, p, g []byte) {
		accounts := spec.ParseAccounts(p, g)
		for _, name := range []string{"root", "web", "0"} {
			u, err := spec.ResolveUser(nil, name, accounts)
			if err == nil && (u.UID > math.MaxInt32 || u.GID > math.MaxInt32 || !slices.Contains(u.Groups, u.GID)) {
				t.Errorf("%q is %+v", name, u)
			}
		}
	})
}

func FuzzResolveUser(f *testing.F) {
	for _, s := range []string{"", "web:extra", "4294967296", "0x0", "１", "1000:abc", "-1:0", "99999999999"} {
		f.Add(s)
	}
	accounts := spec.ParseAccounts([]byte(passwd), []byte(groups))
	f.Fuzz(func(t *testing.T, user string) {
		u, err := spec.ResolveUser(nil, user, accounts)
		if err != nil {
			return
		}
		if u.UID > math.MaxInt32 || u.GID > math.MaxInt32 || !slices.Contains(u.Groups, u.GID) {
			t.Errorf("%q is %+v", user, u)
		}
		// whoever is root was called so: by the empty word, a number, or the one name
		if who, _, _ := strings.Cut(user, ":"); u.UID == 0 && who != "" && who != "0" && who != "root" {
			t.Errorf("%q became root", user)
		}
	})
}
