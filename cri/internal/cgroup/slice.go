package cgroup

import (
	"path"
	"strings"

	"github.com/berth-project/berth/proto/errs"
)

const sliceSuffix = ".slice"

// ExpandSlice is the path of a systemd slice, whose name spells its ancestors (systemd.slice(5)): "a-b.slice" lies in
// "a.slice". The kubelet sends the bare name; a path is taken if it is the one that the name spells. The root slice
// is "-.slice".
func ExpandSlice(name string) (string, error) {
	base := path.Base(name)
	stem, ok := strings.CutSuffix(base, sliceSuffix)
	if !ok {
		return "", errs.InvalidArgument.Errorf("cgroup parent %q is no slice such as kubepods-pod1.slice: the kubelet's cgroupDriver must be systemd, as berth-cri's is", name)
	}
	if stem == "-" {
		return "/", nil
	}
	if strings.ContainsAny(stem, "\x00\n\t ") {
		return "", errs.InvalidArgument.Errorf("cgroup parent %q is no slice: systemd.slice(5)", name)
	}
	var whole, prefix string
	for part := range strings.SplitSeq(stem, "-") {
		if part == "" || part == ".." || part == "." {
			return "", errs.InvalidArgument.Errorf("cgroup parent %q is no slice: systemd.slice(5)", name)
		}
		prefix += part
		whole += "/" + prefix + sliceSuffix
		prefix += "-"
	}
	if !strings.Contains(name, "/") {
		return whole, nil
	}
	clean, err := Clean(name)
	if err == nil && clean != whole {
		err = errs.InvalidArgument.Errorf("cgroup parent %q is not where systemd has that slice, which is %s", name, whole)
	}
	return whole, err
}

// Slice is the name of a slice that stands for a cgroup path: "/berth/pods" is "berth-pods.slice".
func Slice(group string) string {
	if strings.HasSuffix(group, sliceSuffix) {
		return path.Base(group)
	}
	return strings.ReplaceAll(strings.Trim(path.Clean("/"+group), "/"), "/", "-") + sliceSuffix
}
