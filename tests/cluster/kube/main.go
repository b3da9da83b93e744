// SPDX-License-Identifier: Apache-2.0

// Etcd and the API server of Kubernetes as one program, which is linked once: `kube etcd ...`, `kube kube-apiserver ...`.
package main

import (
	"fmt"
	"os"

	"go.etcd.io/etcd/server/v3/etcdmain"
	"k8s.io/component-base/cli"
	"k8s.io/kubernetes/cmd/kube-apiserver/app"
)

func main() {
	os.Args = os.Args[1:]
	if len(os.Args) > 0 && os.Args[0] == "etcd" {
		etcdmain.Main(os.Args)
		return
	}
	if len(os.Args) > 0 && os.Args[0] == "kube-apiserver" {
		os.Exit(cli.Run(app.NewAPIServerCommand()))
	}
	fmt.Fprintln(os.Stderr, "expected `etcd` or `kube-apiserver`, then its flags")
	os.Exit(2)
}
