//go:build tools

// Package tools pins the agent that enforces NetworkPolicies; its own module file cannot be installed from afar.
package tools

import _ "sigs.k8s.io/kube-network-policies/cmd/kube-network-policies/standard"
