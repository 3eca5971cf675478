package config

import (
	"errors"
	"fmt"
	"reflect"
	"strings"

	"github.com/pelletier/go-toml/v2"

	"github.com/berth-project/berth/internal/nearest"
)

// unknownKeys turns the decoder's list of unknown keys into one error each, with the nearest known key.
func unknownKeys(missing *toml.StrictMissingError) error {
	known := keys(reflect.TypeFor[Config](), "")
	var all []error
	for _, e := range missing.Errors {
		key := strings.Join(e.Key(), ".")
		row, _ := e.Position()
		all = append(all, fmt.Errorf("line %d: unknown key %q, nearest is %q", row, key, nearest.To(key, known)))
	}
	return errors.Join(all...)
}

func keys(t reflect.Type, prefix string) []string {
	var all []string
	for i := range t.NumField() {
		name, _, _ := strings.Cut(t.Field(i).Tag.Get("toml"), ",")
		if name == "-" {
			continue
		}
		all = append(all, prefix+name)
		if ft := t.Field(i).Type; ft.Kind() == reflect.Struct {
			all = append(all, keys(ft, prefix+name+".")...)
		}
	}
	return all
}
