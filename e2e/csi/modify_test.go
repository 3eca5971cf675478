package csi

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"golang.org/x/sys/unix"
)

const attributesClass = "apiVersion: storage.k8s.io/v1\nkind: VolumeAttributesClass\nmetadata: {name: %s}\ndriverName: csi.berth.dev\nparameters: {%s}\n"

// modify gives a claim in use a VolumeAttributesClass that its volume cannot have, and then one that it can.
func (x *test) modify(name, class string) {
	x.Helper()
	setting := "readAheadKiB: \"2048\""
	if class == "btrfs" {
		setting = "compression: zstd"
	}
	bad, good := x.ns+"-bad", x.ns+"-good"
	x.ok(apply(x.ctx, fmt.Sprintf(attributesClass, bad, "iops: \"1000\"")))
	x.ok(apply(x.ctx, fmt.Sprintf(attributesClass, good, setting)))
	x.want(name, bad)
	x.await("class "+bad+" to be refused", func() error {
		c, err := x.claim(name)
		if err != nil {
			return err
		}
		s := c.Status.ModifyVolumeStatus
		if s == nil || s.Status != corev1.PersistentVolumeClaimModifyVolumeInfeasible || !strings.Contains(x.events(), "mutable_parameters.iops") {
			return fmt.Errorf("%v, %s", s, x.events())
		}
		return nil
	})
	x.want(name, good)
	x.await("claim "+name+" to have class "+good, func() error {
		c, err := x.claim(name)
		if err != nil {
			return err
		}
		if have := c.Status.CurrentVolumeAttributesClassName; have == nil || *have != good || c.Status.ModifyVolumeStatus != nil {
			return fmt.Errorf("%v: %s", c.Status, x.events())
		}
		return nil
	})
	c, err := x.claim(name)
	x.ok(err)
	pv, err := node.cluster.Client.CoreV1().PersistentVolumes().Get(x.ctx, c.Spec.VolumeName, metav1.GetOptions{})
	x.ok(err)
	if have := pv.Spec.VolumeAttributesClassName; have == nil || *have != good {
		x.Errorf("the PersistentVolume has class %v", have)
	}
	if got := x.setting(class, pv.Spec.CSI.VolumeHandle); !strings.Contains(setting, got) {
		x.Errorf("the volume has %q, want %s", got, setting)
	}
}

func (x *test) claim(name string) (*corev1.PersistentVolumeClaim, error) {
	return node.cluster.Client.CoreV1().PersistentVolumeClaims(x.ns).Get(x.ctx, name, metav1.GetOptions{})
}

// want sets the class that a claim asks for.
func (x *test) want(name, class string) {
	x.Helper()
	x.await("class "+class+" to be asked for", func() error { // others write the claim too
		c, err := x.claim(name)
		if err != nil {
			return err
		}
		c.Spec.VolumeAttributesClassName = &class
		_, err = node.cluster.Client.CoreV1().PersistentVolumeClaims(x.ns).Update(x.ctx, c, metav1.UpdateOptions{})
		return err
	})
}

// setting is what the kernel says of a volume's storage.
func (x *test) setting(class, id string) string {
	x.Helper()
	if class == "btrfs" {
		b := make([]byte, 64)
		n, err := unix.Getxattr(filepath.Join(node.lab.Dir, "pool-btrfs/p/volumes", id), "btrfs.compression", b)
		x.ok(err)
		return string(b[:n])
	}
	files, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
	x.ok(err)
	for _, f := range files {
		if b, err := os.ReadFile(f); err == nil && strings.Contains(string(b), id) {
			kib, err := os.ReadFile(filepath.Join(filepath.Dir(filepath.Dir(f)), "queue/read_ahead_kb"))
			x.ok(err)
			return strings.TrimSpace(string(kib))
		}
	}
	return "no device"
}
