// Package stricttoml reads a configuration file over its defaults and refuses what the configuration does not have: every
// unknown key is an error that names the line and the nearest known key. It knows no program's configuration.
package stricttoml

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"reflect"
	"strings"

	"github.com/pelletier/go-toml/v2"

	"github.com/berth-project/berth/internal/nearest"
)

// Load reads a file and has it parsed; every error names the file. A file that is missing is an error.
func Load[C any](path string, parse func([]byte) (C, error)) (C, error) {
	var none C
	b, err := os.ReadFile(path) //nolint:gosec // the operator's own choice
	if err != nil {
		return none, fmt.Errorf("configuration: %w", err)
	}
	c, err := parse(b)
	if err != nil {
		return none, fmt.Errorf("configuration %s: %w", path, err)
	}
	return c, nil
}

// Decode reads TOML into the struct that v points to, over what it holds. The error joins all unknown keys, or names line
// and column of what is no TOML.
func Decode(b []byte, v any) error {
	err := toml.NewDecoder(bytes.NewReader(b)).DisallowUnknownFields().Decode(v)
	var unknown *toml.StrictMissingError
	var syntax *toml.DecodeError
	switch {
	case errors.As(err, &unknown):
		var all []error
		for _, e := range unknown.Errors {
			key := strings.Join(e.Key(), ".")
			row, _ := e.Position()
			all = append(all, fmt.Errorf("line %d: unknown key %q, nearest is %q", row, key, nearest.To(key, keys(reflect.TypeOf(v).Elem(), "", e.Key()))))
		}
		return errors.Join(all...)
	case errors.As(err, &syntax):
		row, col := syntax.Position()
		return fmt.Errorf("line %d, column %d: %w", row, col, err)
	}
	return err
}

// keys are all that a struct has, dotted. Names that the operator chooses (a map's) are those on the way to key.
func keys(t reflect.Type, prefix string, way []string) []string {
	var all []string
	for i := range t.NumField() {
		name, _, _ := strings.Cut(t.Field(i).Tag.Get("toml"), ",")
		if name == "-" {
			continue
		}
		all = append(all, prefix+name)
		ft, at, rest := t.Field(i).Type, prefix+name+".", []string(nil)
		if len(way) > 0 && way[0] == name {
			rest = way[1:]
		}
		if ft.Kind() == reflect.Map {
			if len(rest) == 0 {
				continue
			}
			at, rest = at+rest[0]+".", rest[1:]
		}
		if ft.Kind() == reflect.Map || ft.Kind() == reflect.Slice || ft.Kind() == reflect.Pointer {
			ft = ft.Elem()
		}
		if ft.Kind() == reflect.Struct {
			all = append(all, keys(ft, at, rest)...)
		}
	}
	return all
}
