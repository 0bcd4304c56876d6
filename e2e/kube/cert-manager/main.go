// Cert-manager is its controller, cainjector and webhook in one binary; the name that it is called by decides which one
// it is. The module proxy has cert-manager's packages but not its main packages, which are modules of their own inside
// its repository and known only there. So what stands here is how they are put together, with the controllers that an
// issuer needs which signs by itself or with a CA (no ACME, Vault or cloud), and its defaults.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"github.com/spf13/pflag"
	"k8s.io/klog/v2"
	"sigs.k8s.io/controller-runtime/pkg/log"

	logf "github.com/cert-manager/cert-manager/pkg/logs"
)

func main() {
	programs := map[string]func(context.Context, *pflag.FlagSet, []string) error{
		"cert-manager-controller": controllers,
		"cert-manager-cainjector": cainjector,
		"cert-manager-webhook":    webhook,
	}
	name := filepath.Base(os.Args[0])
	program, known := programs[name]
	if !known {
		fmt.Fprintf(os.Stderr, "call it as cert-manager-controller, -cainjector or -webhook, not %s\n", name)
		os.Exit(2)
	}
	logf.InitLogs()
	log.SetLogger(klog.Background())
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	err := program(ctx, pflag.NewFlagSet(name, pflag.ContinueOnError), os.Args[1:])
	if ctx.Err() != nil { // it was told to end
		err = nil
	}
	stop()
	logf.FlushLogs()
	if err != nil {
		fmt.Fprintf(os.Stderr, "%s: %v\n", name, err)
		os.Exit(1)
	}
}
