package cgroup

import "testing"

func TestExpandSlice(t *testing.T) {
	for name, want := range map[string]string{
		"-.slice":                                "/",
		"kubepods.slice":                         "/kubepods.slice",
		"kubepods-burstable-pod1a_2b.slice":      "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1a_2b.slice",
		"/kubepods.slice/kubepods-pod1.slice":    "/kubepods.slice/kubepods-pod1.slice",
		"kubepods.slice/kubepods-pod1.slice":     "/kubepods.slice/kubepods-pod1.slice",
		"/elsewhere.slice/kubepods-pod1.slice":   "",
		"/kubepods/pod1":                         "",
		"":                                       "",
		".slice":                                 "",
		"a--b.slice":                             "",
		"a-.slice":                               "",
		"a-..-b.slice":                           "",
		"a b.slice":                              "",
		"kubepods-pod1.slice/../../system.slice": "",
	} {
		got, err := ExpandSlice(name)
		if (err != nil) != (want == "") || err == nil && got != want {
			t.Errorf("%q is %q, %v; want %q", name, got, err, want)
		}
	}
	for group, want := range map[string]string{"/berth": "berth.slice", "/berth/pods": "berth-pods.slice", "/a.slice/a-b.slice": "a-b.slice"} {
		if got := Slice(group); got != want {
			t.Errorf("%q is %q, want %q", group, got, want)
		}
	}
}
