{{/* Names are constant: the controller's certificate, the sidecars and the documentation name them. */}}
{{- define "hedgerow.require" -}}
{{- if ne .Release.Namespace "hedgerow-system" -}}
{{- fail (printf "namespace: Hedgerow lives in hedgerow-system, because its identity names it, and not in %s; install with -n hedgerow-system --create-namespace" .Release.Namespace) -}}
{{- end -}}
{{- include "hedgerow.effect" . -}}
{{- end -}}

{{/* What is said here would change nothing beside something else that is said. */}}
{{- define "hedgerow.effect" -}}
{{- $state := .Values.controller.persistence -}}
{{- if and $state.existingClaim (not $state.enabled) -}}
{{- fail "controller.persistence.existingClaim: without effect beside persistence.enabled: false; set it to true, or remove the claim" -}}
{{- end -}}
{{- if and $state.existingClaim $state.storageClass -}}
{{- fail "controller.persistence.storageClass: a claim that exists has its own; remove it, or existingClaim" -}}
{{- end -}}
{{- if and .Values.injector.certManager.issuerRef.name (not .Values.injector.certManager.enabled) -}}
{{- fail "injector.certManager.issuerRef.name: asked by nobody beside certManager.enabled: false; set it to true, and injector.certificate to external, or remove the name" -}}
{{- end -}}
{{- if and .Values.crds.keep (not .Values.crds.install) -}}
{{- fail "crds.keep: beside crds.install: false there are none of this release's to keep; remove it" -}}
{{- end -}}
{{- if and (.Values.networkPolicies.apiServer | default dict).networks (not .Values.networkPolicies.enabled) -}}
{{- fail "networkPolicies.apiServer.networks: nothing is narrowed beside networkPolicies.enabled: false; set it to true, or remove the networks" -}}
{{- end -}}
{{- end -}}

{{- define "hedgerow.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
app.kubernetes.io/part-of: hedgerow
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end -}}

{{- define "hedgerow.selector" -}}
app.kubernetes.io/name: {{ .component }}
app.kubernetes.io/part-of: hedgerow
{{- end -}}

{{/* An image reference: by digest, else by tag, else by the chart's appVersion. */}}
{{- define "hedgerow.image" -}}
{{- if .image.digest -}}
{{ .image.repository }}@{{ .image.digest }}
{{- else -}}
{{ .image.repository }}:{{ default .root.Chart.AppVersion .image.tag }}
{{- end -}}
{{- end -}}

{{- define "hedgerow.podSecurity" -}}
runAsNonRoot: true
runAsUser: 1337
runAsGroup: 1337
fsGroup: 1337
fsGroupChangePolicy: OnRootMismatch
seccompProfile: {type: RuntimeDefault}
{{- end -}}

{{- define "hedgerow.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end -}}

{{/* What both Deployments take from values. */}}
{{- define "hedgerow.placement" -}}
{{- with .nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .affinity }}
affinity: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- end -}}

{{/* What all webhooks share. */}}
{{- define "hedgerow.webhook" -}}
admissionReviewVersions: [v1]
clientConfig:
  service: {name: hedgerow-injector, namespace: {{ .root.Release.Namespace }}, path: {{ .path }}, port: 443}
failurePolicy: {{ .root.Values.injector.failurePolicy }}
matchPolicy: Equivalent
reinvocationPolicy: IfNeeded
sideEffects: None
timeoutSeconds: 10
{{- end -}}

{{/* A way to the API server, for NetworkPolicies. An upgrade with --reuse-values knows no value that is new: never a rule without ports. */}}
{{- define "hedgerow.apiServer" -}}
{{- $given := .Values.networkPolicies.apiServer | default dict -}}
ports:
  {{- range $given.ports | default (list 443 6443) }}
  - {port: {{ toJson . }}, protocol: TCP}
  {{- end }}
{{- with $given.networks }}
to:
  {{- range . }}
  - ipBlock: {cidr: {{ . | quote }}}
  {{- end }}
{{- end }}
{{- end -}}
