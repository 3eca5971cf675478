package config

import (
	"errors"
	"fmt"
	"reflect"
	"strings"

	"github.com/pelletier/go-toml/v2"
)

// unknownKeys turns the decoder's list of unknown keys into one error each, with the nearest known key.
func unknownKeys(missing *toml.StrictMissingError) error {
	known := keys(reflect.TypeFor[Config](), "")
	var all []error
	for _, e := range missing.Errors {
		key := strings.Join(e.Key(), ".")
		row, _ := e.Position()
		all = append(all, fmt.Errorf("line %d: unknown key %q, nearest is %q", row, key, nearest(key, known)))
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

func nearest(key string, known []string) string {
	best, dist := "", len(key)+100
	for _, k := range known {
		if d := distance(key, k); d < dist {
			best, dist = k, d
		}
	}
	return best
}

// distance is the Levenshtein distance of two short strings.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diag := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diag
			if a[i] != b[j] {
				cost++
			}
			diag = row[j+1]
			row[j+1] = min(cost, row[j+1]+1, row[j]+1)
		}
	}
	return row[len(b)]
}
