package main

import (
	"cmp"
	"context"
	"flag"
	"log/slog"
	"os"
	"time"

	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/berth-project/berth/csi/internal/config"
	"github.com/berth-project/berth/csi/internal/driver"
	"github.com/berth-project/berth/csi/internal/gone"
)

// lookAfterGone runs the cluster's one collector of what nodes that are gone have left. It needs no configuration file:
// it has no node and no pool.
func lookAfterGone(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("gone", flag.ContinueOnError)
	name := flags.String("driver", config.Default().Driver, "the driver's name")
	kubeconfig := flags.String("kubeconfig", "", "default: the pod's service account")
	policy := flags.String("policy", string(gone.Report), "report, forget or release")
	after := flags.Duration("after", time.Hour, "how long a Node object must have been missing")
	every := flags.Duration("every", time.Minute, "how often to look")
	if err := flags.Parse(args); err != nil {
		return err
	}
	conf := gone.Config{
		Driver: cmp.Or(*name, config.Default().Driver), TopologyKey: driver.TopologyKey(*name), Policy: gone.Policy(*policy),
		After: *after, Every: *every, Log: slog.New(slog.NewTextHandler(os.Stderr, nil)),
	}
	if err := conf.Validate(); err != nil {
		return err
	}
	rc, err := rest.InClusterConfig()
	if *kubeconfig != "" {
		rc, err = clientcmd.BuildConfigFromFlags("", *kubeconfig)
	}
	if err != nil {
		return err
	}
	client, err := kubernetes.NewForConfig(rc)
	if err != nil {
		return err
	}
	objects, err := dynamic.NewForConfig(rc)
	if err != nil {
		return err
	}
	conf.Log.Info("looking after nodes that are gone", "policy", *policy, "after", after.String())
	return gone.New(conf, client, objects).Run(ctx)
}
