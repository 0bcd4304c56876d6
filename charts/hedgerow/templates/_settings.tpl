{{/* One value for both programs. An upgrade with --reuse-values knows no value that is new. */}}
{{- define "hedgerow.tokenAudience" -}}
{{- $audience := .Values.tokenAudience | default "hedgerow-controller" -}}
{{- if regexMatch "^(?i)(https?://)?kubernetes(\\.default(\\.svc(\\..*)?)?)?(:[0-9]*)?/?$" $audience -}}
{{- fail (printf "tokenAudience: %q is the API server, and every pod has a token for it; write a name that is the controller's alone, such as hedgerow-controller" $audience) -}}
{{- end -}}
{{- $audience -}}
{{- end -}}

{{/* controller.yaml. Numbers as JSON: Helm has read them as floating point, and a million would stand here as 1e+06, a text. */}}
{{- define "hedgerow.controllerSettings" -}}
{{- $c := .Values.controller -}}
state_dir: /var/lib/hedgerow/state
trust_domain: {{ .Values.trustDomain }}
grpc_listen: {{ printf "%s:15012" $c.listenHost | quote }}
issuer_listen: {{ printf "%s:15013" $c.listenHost | quote }}
monitoring_listen: {{ printf "%s:15014" $c.listenHost | quote }}
web_listen: 127.0.0.1:8080
svid_lifetime: {{ toJson $c.svidLifetime }}
log_level: {{ $c.logLevel }}
learning:
  min_connections: {{ toJson $c.learning.minConnections }}
  min_seconds: {{ toJson $c.learning.minSeconds }}
  quiet_seconds: {{ toJson $c.learning.quietSeconds }}
  stale_after: {{ toJson $c.learning.staleAfter }}
  retire_after: {{ toJson $c.learning.retireAfter }}
kubernetes:
  namespace: {{ .Release.Namespace }}
  {{- with .Values.clusterNetworks }}
  cluster_networks: {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- if ne .Values.injector.certificate "controller" }}
  injector_certificate: external
  {{- end }}
  token_audience: {{ include "hedgerow.tokenAudience" . | quote }}
{{- end -}}

{{/* injector.yaml */}}
{{- define "hedgerow.injectorSettings" -}}
{{- $s := .Values.sidecar -}}
log_level: {{ .Values.injector.logLevel }}
certificate: /etc/hedgerow-tls/tls.crt
key: /etc/hedgerow-tls/tls.key
listen: {{ printf "%s:8443" .Values.controller.listenHost | quote }}
health_listen: {{ printf "%s:15014" .Values.controller.listenHost | quote }}
injection:
  image: {{ include "hedgerow.image" (dict "image" $s.image "root" .) | quote }}
  image_pull_policy: {{ $s.image.pullPolicy }}
  namespace: {{ .Release.Namespace }}
  {{- with .Values.injector.excludedNamespaces }}
  excluded_namespaces: {{- toYaml . | nindent 4 }}
  {{- end }}
  kubernetes_version: {{ printf "%s.%s" .Capabilities.KubeVersion.Major (regexFind "^[0-9]+" .Capabilities.KubeVersion.Minor) | quote }}
  native_sidecar: {{ $s.native }}
  validation: {{ $s.validation }}
  start_seconds: {{ toJson $s.startSeconds }}
  trust_domain: {{ .Values.trustDomain }}
  token_audience: {{ include "hedgerow.tokenAudience" . | quote }}
  {{- with .Values.clusterName }}
  cluster: {{ . }}
  {{- end }}
  resources: {{- toYaml $s.resources | nindent 4 }}
  capture_resources: {{- toYaml $s.captureResources | nindent 4 }}
  {{- with .Values.injector.allowAnnotations }}
  allow_annotations: {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with $s.settings }}
  sidecar: {{- toYaml . | nindent 4 }}
  {{- end }}
{{- end -}}
