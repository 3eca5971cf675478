package fake

import (
	"os"
	"path/filepath"
	"reflect"
	"testing"
)

// TestRecord: what is recorded of a node is a profile that lists the same.
func TestRecord(t *testing.T) {
	for _, name := range Names() {
		src, err := Open(name)
		if err != nil {
			t.Fatal(err)
		}
		want, err := src.Inventory(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		majors, err := src.Majors()
		if err != nil {
			t.Fatal(err)
		}
		b, err := Record("a test", want, majors)
		if err != nil {
			t.Fatal(err)
		}
		file := filepath.Join(t.TempDir(), "recorded.yaml")
		if err := os.WriteFile(file, b, 0o600); err != nil {
			t.Fatal(err)
		}
		again, err := Open(file)
		if err != nil {
			t.Fatalf("%s: %v\n%s", name, err, b)
		}
		got, err := again.Inventory(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		m, err := again.Majors()
		if err != nil || m != majors || !reflect.DeepEqual(got, want) {
			t.Errorf("%s: %v\n%+v\nis not\n%+v", name, err, got, want)
		}
	}
}
