{{/* The settings of a daemon: call with a dict of `port` and `settings`. */}}
{{- define "mcastor.settings" -}}
[http]
listen = "0.0.0.0:{{ .port }}"
# Metrics and probes only: whoever reaches the port need not read routes and flows.
api = false

{{ .settings }}
{{- end }}

{{/* The container of mcastor: call with a dict of `root`, `hostPort` and `resources`. */}}
{{- define "mcastor.container" -}}
name: mcastor
image: {{ .root.Values.image.repository }}:{{ .root.Values.image.tag | default .root.Chart.AppVersion }}
{{- with .root.Values.image.pullPolicy }}
imagePullPolicy: {{ . }}
{{- end }}
args: [run, --config, /etc/mcastor/mcastor.toml]
ports:
  - name: metrics
    containerPort: {{ .root.Values.port }}
    {{- if .hostPort }}
    hostPort: {{ .root.Values.port }}
    {{- end }}
securityContext:
  runAsNonRoot: true
  runAsUser: 65532
  readOnlyRootFilesystem: true
  # The capability is a file capability, which no-new-privileges would disable.
  allowPrivilegeEscalation: true
  capabilities:
    drop: [ALL]
    add: {{ toJson .root.Values.capabilities }}
  seccompProfile: { type: RuntimeDefault }
livenessProbe:
  httpGet: { path: /healthz, port: metrics }
  periodSeconds: 10
readinessProbe:
  httpGet: { path: /readyz, port: metrics }
  periodSeconds: 5
resources:
  {{- toYaml .resources | nindent 2 }}
volumeMounts:
  - { name: settings, mountPath: /etc/mcastor, readOnly: true }
  - { name: run, mountPath: /run/mcastor }
{{- end }}

{{/* The volumes of a pod: call with the name of the ConfigMap. */}}
{{- define "mcastor.volumes" -}}
- name: settings
  configMap: { name: {{ . }} }
- name: run
  emptyDir: { medium: Memory }
{{- end }}
