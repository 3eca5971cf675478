package loopdev

import (
	"errors"
	"os"
)

// ReadOnlyFor is the path of a loop device in front of another block device that refuses writes; one that is there
// already is taken. It stays until [ReleaseOver].
func ReadOnlyFor(device string) (path string, err error) {
	f, err := os.Open(device)
	if err != nil {
		return "", err
	}
	defer f.Close() //nolint:errcheck // read only
	all, err := Find(f)
	if err != nil {
		return "", err
	}
	for _, dev := range all {
		if ro, err := ReadOnly(dev); err != nil || ro {
			return dev, err
		}
	}
	dev, err := Attach(f, Options{ReadOnly: true})
	if err != nil {
		return "", err
	}
	return dev.Name(), dev.Close()
}

// Over are the paths of the loop devices in front of another block device.
func Over(device string) ([]string, error) {
	f, err := os.Open(device)
	if err != nil {
		return nil, err
	}
	all, err := Find(f)
	return all, errors.Join(err, f.Close())
}

// ReleaseOver is [Release] of the loop devices in front of another block device.
func ReleaseOver(device string) error {
	f, err := os.Open(device)
	if err != nil {
		return err
	}
	return errors.Join(Release(f), f.Close())
}
