package main

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/berth-project/berth/csi/internal/adopt"
	"github.com/berth-project/berth/csi/internal/config"
	"github.com/berth-project/berth/csi/internal/driver"
)

// adoptAll takes over the PersistentVolumes that are named, one after another; one that fails does not keep the others.
func adoptAll(ctx context.Context, path, node string, args []string, out io.Writer) (err error) {
	flags := flag.NewFlagSet("adopt", flag.ContinueOnError)
	pool := flags.String("pool", "", "the pool that takes them; default: the one with default = true")
	fs := flags.String("fstype", "", "file system of the volumes; default: the pool's first")
	kubeconfig := flags.String("kubeconfig", "", "of somebody who may replace PersistentVolumes; default: the configuration's")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if flags.NArg() == 0 {
		return errors.New("adopt: name one or more PersistentVolumes")
	}
	conf, err := config.Load(path)
	if err != nil {
		return err
	}
	rc, err := clientcmd.BuildConfigFromFlags("", cmp.Or(*kubeconfig, conf.Cluster.Kubeconfig))
	if err != nil {
		return err
	}
	client, err := kubernetes.NewForConfig(rc)
	if err != nil {
		return err
	}
	conn, err := grpc.NewClient("unix://"+conf.Socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, conn.Close()) }()
	conf.Node = cmp.Or(node, conf.Node)
	if conf.Node == "" {
		if conf.Node, err = os.Hostname(); err != nil {
			return err
		}
		conf.Node = strings.ToLower(conf.Node)
	}
	a := adopt.New(adopt.Config{
		Driver: conf.Driver, Node: conf.Node, TopologyKey: driver.TopologyKey(conf.Driver), Pool: *pool, FSType: *fs,
		KubeletDir: conf.KubeletDir, Saved: filepath.Join(conf.Root, "adopting"), Out: out,
	}, client, csi.NewControllerClient(conn), csi.NewNodeClient(conn))
	for _, name := range flags.Args() {
		if aerr := a.Adopt(ctx, name); aerr != nil {
			err = errors.Join(err, fmt.Errorf("adopt: %w", aerr))
		}
	}
	return err
}
