// SPDX-License-Identifier: Apache-2.0

// The Kubernetes project's engine for network policies on the packets of one network namespace. Namespaces, pods (with status.podIP) and
// policies come from a file instead of an API server. Usage: netpol FILE QUEUE. The caller's iptables rule sends packets to the queue.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strconv"

	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes/fake"
	"k8s.io/client-go/kubernetes/scheme"
	"sigs.k8s.io/kube-network-policies/pkg/networkpolicy"
)

func objects(path string) (found []runtime.Object, err error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	documents := yaml.NewYAMLOrJSONDecoder(file, 4096)
	for {
		var raw runtime.RawExtension
		if err := documents.Decode(&raw); errors.Is(err, io.EOF) {
			return found, nil
		} else if err != nil {
			return nil, err
		}
		object, _, err := scheme.Codecs.UniversalDeserializer().Decode(raw.Raw, nil, nil)
		if err != nil {
			return nil, err
		}
		found = append(found, object)
	}
}

func run() error {
	if len(os.Args) != 3 {
		return errors.New("usage: netpol FILE QUEUE")
	}
	queue, err := strconv.Atoi(os.Args[2])
	if err != nil {
		return err
	}
	known, err := objects(os.Args[1])
	if err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	client := fake.NewClientset(known...)
	factory := informers.NewSharedInformerFactory(client, 0)
	engine, err := networkpolicy.NewController(client, factory.Networking().V1().NetworkPolicies(), factory.Core().V1().Namespaces(),
		factory.Core().V1().Pods(), nil, nil, nil, nil, networkpolicy.Config{QueueID: queue, NodeName: "rig", NRIdisabled: true})
	if err != nil {
		return err
	}
	factory.Start(ctx.Done())
	return engine.Run(ctx)
}

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
