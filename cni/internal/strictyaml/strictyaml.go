// Package strictyaml reads one YAML document into a struct and refuses what the struct does not have: every unknown
// key is an error that names the line, the path and the nearest known key. Anchors, aliases, merge keys and further
// documents are refused too, since a file that a machine watches should say plainly what it says. It knows no
// program's configuration.
package strictyaml

import (
	"errors"
	"fmt"
	"reflect"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/berth-project/berth/internal/nearest"
)

// MaxSize is the largest document that is read, in bytes: 5,000 nodes take about 1 MB.
const MaxSize = 16 << 20

// Decode reads the document in b into the struct that v points to. The error joins everything that is wrong. An empty
// document leaves v as it is.
func Decode(b []byte, v any) error {
	if len(b) > MaxSize {
		return fmt.Errorf("%d bytes, at most %d are read", len(b), MaxSize)
	}
	d := yaml.NewDecoder(strings.NewReader(string(b)))
	var doc yaml.Node
	if err := d.Decode(&doc); err != nil {
		if err.Error() == "EOF" {
			return nil
		}
		return fmt.Errorf("no YAML: %s", strings.TrimPrefix(err.Error(), "yaml: "))
	}
	if err := d.Decode(new(yaml.Node)); err == nil {
		return errors.New("more than one document")
	}
	if len(doc.Content) != 1 {
		return nil
	}
	if doc.Content[0].Kind == yaml.ScalarNode && doc.Content[0].Tag == "!!null" {
		return nil
	}
	w := walker{}
	w.walk(doc.Content[0], reflect.TypeOf(v), "")
	if len(w.errs) > 0 {
		return errors.Join(w.errs...)
	}
	if err := doc.Decode(v); err != nil {
		return fmt.Errorf("%s", strings.TrimPrefix(err.Error(), "yaml: "))
	}
	return nil
}

type walker struct{ errs []error }

func (w *walker) bad(n *yaml.Node, path, format string, args ...any) {
	if len(w.errs) < 20 { // the rest of a file that is not ours helps nobody
		w.errs = append(w.errs, fmt.Errorf("line %d: %s: %s", n.Line, path, fmt.Sprintf(format, args...)))
	}
}

// walk compares a node with the type that it will be read into.
func (w *walker) walk(n *yaml.Node, t reflect.Type, path string) {
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	if n.Kind == yaml.AliasNode || n.Anchor != "" {
		w.bad(n, path, "anchors and aliases are not read")
		return
	}
	switch {
	case scalar(t) || n.Kind == yaml.ScalarNode:
		return // decoding says what is wrong with a value
	case t.Kind() == reflect.Slice && n.Kind == yaml.SequenceNode:
		for i, c := range n.Content {
			w.walk(c, t.Elem(), fmt.Sprintf("%s[%d]", path, i))
		}
	case t.Kind() == reflect.Map && n.Kind == yaml.MappingNode:
		for i := 1; i < len(n.Content); i += 2 {
			w.walk(n.Content[i], t.Elem(), path+"."+n.Content[i-1].Value)
		}
	case t.Kind() == reflect.Struct && n.Kind == yaml.MappingNode:
		w.fields(n, t, path)
	default:
		w.bad(n, strings.TrimPrefix(path, "."), "holds a %s, want a %s", kind(n), t.Kind())
	}
}

func (w *walker) fields(n *yaml.Node, t reflect.Type, path string) {
	known := Keys(t)
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, value := n.Content[i], n.Content[i+1]
		full := strings.TrimPrefix(path+"."+key.Value, ".")
		f, ok := field(t, key.Value)
		if !ok {
			w.bad(key, full, "unknown key, nearest is %q", nearest.To(key.Value, known))
			continue
		}
		w.walk(value, f, full)
	}
}

// Keys are the keys of a struct type, in its order.
func Keys(t reflect.Type) []string {
	var all []string
	for i := range t.NumField() {
		if name := name(t.Field(i)); name != "-" {
			all = append(all, name)
		}
	}
	return all
}

func name(f reflect.StructField) string {
	name, _, _ := strings.Cut(f.Tag.Get("yaml"), ",")
	return name
}

func field(t reflect.Type, key string) (reflect.Type, bool) {
	for i := range t.NumField() {
		if f := t.Field(i); name(f) == key && key != "-" {
			return f.Type, true
		}
	}
	return nil, false
}

type texter interface{ UnmarshalText([]byte) error }

// scalar says whether a type reads itself from a text, as addresses do.
func scalar(t reflect.Type) bool {
	return reflect.PointerTo(t).Implements(reflect.TypeFor[texter]())
}

func kind(n *yaml.Node) string {
	switch n.Kind {
	case yaml.SequenceNode:
		return "list"
	case yaml.MappingNode:
		return "mapping"
	}
	return "value"
}
