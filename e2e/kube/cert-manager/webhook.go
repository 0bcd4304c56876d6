package main

import (
	"context"

	"github.com/spf13/pflag"

	server "github.com/cert-manager/cert-manager/internal/webhook"
	logf "github.com/cert-manager/cert-manager/pkg/logs"
	"github.com/cert-manager/cert-manager/pkg/webhook/options"
)

func webhook(ctx context.Context, flags *pflag.FlagSet, arguments []string) error {
	config, err := options.NewWebhookConfiguration()
	if err != nil {
		return err
	}
	options.AddConfigFlags(flags, config)
	if err := flags.Parse(arguments); err != nil {
		return err
	}
	made, err := server.NewCertManagerWebhookServer(logf.Log.WithName("webhook"), *config)
	if err != nil {
		return err
	}
	return made.Run(ctx)
}
