package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/berth-project/berth/deviceplugin/internal/config"
	"github.com/berth-project/berth/deviceplugin/internal/discovery/fake"
	"github.com/berth-project/berth/deviceplugin/internal/driver"
	"github.com/berth-project/berth/deviceplugin/internal/inventory"
)

// list asks the source once for the GPUs, and for the driver's device numbers.
func list(ctx context.Context, o options) (*inventory.Node, driver.Majors, error) {
	conf, err := load(o.config)
	if err != nil {
		return nil, driver.Majors{}, err
	}
	src, err := open(conf, o)
	if err != nil {
		return nil, driver.Majors{}, err
	}
	defer src.close()
	ctx, cancel := context.WithTimeout(ctx, config.Milliseconds(conf.Health.Start))
	defer cancel()
	n, err := src.source.Inventory(ctx)
	if err != nil {
		return nil, driver.Majors{}, err
	}
	for _, bad := range n.Clean() {
		fmt.Fprintln(os.Stderr, "left out:", bad)
	}
	majors, err := src.majors()
	return n, majors, err
}

// printInventory prints what is there.
func printInventory(ctx context.Context, o options, out io.Writer) error {
	n, _, err := list(ctx, o)
	if err != nil {
		return err
	}
	e := json.NewEncoder(out)
	e.SetIndent("", "  ")
	return e.Encode(n)
}

// record prints what is there as a profile, which --fake reads.
func record(ctx context.Context, o options, out io.Writer) error {
	n, majors, err := list(ctx, o)
	if err != nil {
		return err
	}
	origin := fmt.Sprintf("a recording of %s, %s", or(n.Machine, "a machine without a name"), time.Now().UTC().Format(time.DateOnly))
	b, err := fake.Record(origin, n, majors)
	if err != nil {
		return err
	}
	_, err = out.Write(b)
	return err
}
