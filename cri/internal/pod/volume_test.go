package pod

import (
	"errors"
	"strings"
	"testing"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// volumed is a running container with an image volume, and the name of its hold on the image.
func (n *node) volumed() (id, hold string) {
	n.t.Helper()
	config := containerConfig("c", "/bin/sleep", "1000")
	config.Mounts = []*cri.Mount{
		{ContainerPath: "/tmp", HostPath: n.dir},
		{ContainerPath: "/vol", Image: &cri.ImageSpec{Image: "busybox"}},
	}
	id, err := n.Create(n.t.Context(), n.run("volume"), config)
	if err == nil {
		err = n.Start(n.t.Context(), id)
	}
	if err != nil {
		n.t.Fatal(err)
	}
	return id, holder(id, 1)
}

// TestImageVolumeIsHeld: the layers of an image volume are held by the image's id, whatever has become of its name: it was
// removed under the container, or its tag was given to another image.
func TestImageVolumeIsHeld(t *testing.T) {
	for name, became := range map[string]string{"the image was removed": "", "its tag has moved": "sha256:c0"} {
		t.Run(name, func(t *testing.T) {
			n := newNode(t)
			_, hold := n.volumed()
			n.down()
			n.images.tag = became
			n.up()
			n.images.tag = busyboxID
			if got := n.images.holders[hold]; got != busyboxID {
				t.Errorf("after a restart %q is held, want %q", got, busyboxID)
			}
		})
	}
}

// TestEarlierVolume: a record of a build that did not name the images of volumes is read: the image is the one that its
// configuration names, and the next record has it.
func TestEarlierVolume(t *testing.T) {
	n := newNode(t)
	id, hold := n.volumed()
	c, err := n.Container(id)
	if err != nil {
		t.Fatal(err)
	}
	n.down()
	raw, err := n.store.Load(containerKind)
	if err != nil {
		t.Fatal(err)
	}
	old := strings.Replace(string(raw[id]), `"volumes":{"`+hold+`":"`+busyboxID+`"},`, "", 1)
	if old == string(raw[id]) {
		t.Fatalf("the record has no volume: %s", old)
	}
	if err := n.store.Put(containerKind, id, []byte(old)); err != nil {
		t.Fatal(err)
	}
	n.up()
	if got := n.images.holders[hold]; got != busyboxID {
		t.Errorf("%q is held, want %q", got, busyboxID)
	}
	if again, err := n.Container(id); err != nil || again == c || again.volumes[hold] != busyboxID {
		t.Errorf("the container's volumes are %v, %v", again.volumes, err)
	}
}

// TestAuditedVolumes: an image that only a volume uses is used, in a record of this build by its id, in an earlier one's by what
// its configuration names.
func TestAuditedVolumes(t *testing.T) {
	config := containerConfig("c", "true")
	config.Mounts = []*cri.Mount{{ContainerPath: "/vol", Image: &cri.ImageSpec{Image: "sha256:ref"}}}
	for id, want := range map[string]string{"sha256:volume": "sha256:volume", "": "sha256:ref"} {
		l := ledger{}
		m := New(Config{}, l, nil, nil)
		c := &Container{ID: "c1", PodID: "p1", Config: config, ImageID: busyboxID, volumes: map[string]string{holder("c1", 0): id}}
		if err := errors.Join(m.savePod(&Pod{ID: "p1", Config: podConfig("p")}), m.saveContainer(c)); err != nil {
			t.Fatal(err)
		}
		used, _, err := Audit(Audited{Root: t.TempDir(), State: t.TempDir(), Records: map[string]map[string][]byte{
			podKind: {"p1": l["pod/p1"]}, containerKind: {"c1": l["container/c1"]},
		}})
		if err != nil || !used[busyboxID] || !used[want] || used[holder("c1", 0)] {
			t.Errorf("used are %v, %v", used, err)
		}
	}
}
