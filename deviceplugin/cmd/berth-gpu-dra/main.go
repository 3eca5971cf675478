// Command berth-gpu-dra serves a node's GPUs by Dynamic Resource Allocation, beside a berth-gpu that has the
// inventory and the ledger: a GPU that a container has through the device plugin is never given to a claim, and the
// other way round.
//
//	berth-gpu-dra --node NAME [--kubeconfig FILE] [--driver NAME] [--socket PATH] [--kubelet DIR]
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/dynamic-resource-allocation/kubeletplugin"

	"github.com/berth-project/berth/deviceplugin/internal/dra"
	"github.com/berth-project/berth/deviceplugin/internal/dra/core"
)

// options are the flags.
type options struct{ node, kubeconfig, driver, socket, kubelet string }

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	if err := command(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "berth-gpu-dra:", err)
		os.Exit(1) //nolint:gocritic // stop has nothing left to do
	}
}

func command(ctx context.Context, args []string) error {
	var o options
	f := flag.NewFlagSet("berth-gpu-dra", flag.ContinueOnError)
	f.StringVar(&o.node, "node", os.Getenv("NODE_NAME"), "the node's name in the API; by default $NODE_NAME")
	f.StringVar(&o.kubeconfig, "kubeconfig", "", "how to reach the API server; empty: as a pod does")
	f.StringVar(&o.driver, "driver", "gpu.berth-project", "the driver's name in device classes")
	f.StringVar(&o.socket, "socket", "/run/berth/gpu/debug.sock", "berth-gpu's debug socket")
	f.StringVar(&o.kubelet, "kubelet", "/var/lib/kubelet", "the kubelet's root directory")
	if err := f.Parse(args); err != nil {
		return err
	}
	if o.node == "" || f.NArg() > 0 {
		return errors.New("--node is needed, and nothing but flags")
	}
	return serve(ctx, o)
}

func serve(ctx context.Context, o options) error {
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	config, err := clientcmd.BuildConfigFromFlags("", o.kubeconfig)
	if err != nil {
		return err
	}
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return err
	}
	data := filepath.Join(o.kubelet, "plugins", o.driver)
	if err := os.MkdirAll(data, 0o750); err != nil {
		return err
	}
	p := dra.New(core.New(o.socket), o.driver, o.node, log)
	helper, err := kubeletplugin.Start(ctx, p, kubeletplugin.DriverName(o.driver), kubeletplugin.NodeName(o.node), kubeletplugin.KubeClient(client),
		kubeletplugin.PluginDataDirectoryPath(data), kubeletplugin.RegistrarDirectoryPath(filepath.Join(o.kubelet, "plugins_registry")))
	if err != nil {
		return err
	}
	defer helper.Stop()
	log.Info("serving", "driver", o.driver, "node", o.node)
	return p.Publish(ctx, helper)
}
