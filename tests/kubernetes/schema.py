"""JSON schemas for the part of the Kubernetes API (v1, apps/v1) that conf/kubernetes uses. Other fields
are rejected, as by an API server with strict field validation."""

TEXT = {"type": "string"}
INTEGER = {"type": "integer"}
BOOLEAN = {"type": "boolean"}
TEXTS = {"type": "array", "items": TEXT}
# Label values and annotations are strings. An unquoted number or `true` is a common mistake.
MAP = {"type": "object", "additionalProperties": TEXT}
NAME = {"type": "string", "pattern": r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", "maxLength": 63}
QUANTITY = {"type": "string", "pattern": r"^[0-9]+(\.[0-9]+)?(m|[kMGT]i?)?$"}


def record(required=(), **fields):
    return {
        "type": "object",
        "properties": fields,
        "required": list(required),
        "additionalProperties": False,
    }


def some(items):
    return {"type": "array", "items": items, "minItems": 1}


def one_of(*words):
    return {"enum": list(words)}


META = record(["name"], name=NAME, namespace=NAME, labels=MAP, annotations=MAP)
PROBE = record(
    httpGet=record(["port"], path=TEXT, port={"type": ["integer", "string"]}, scheme=TEXT),
    periodSeconds=INTEGER, timeoutSeconds=INTEGER, initialDelaySeconds=INTEGER, failureThreshold=INTEGER,
)
RESOURCES = {"type": "object", "propertyNames": one_of("cpu", "memory"), "additionalProperties": QUANTITY}
CAPABILITY = {"type": "string", "pattern": "^(ALL|[A-Z]+(_[A-Z]+)*)$", "not": {"pattern": "^CAP_"}}
CONTAINER = record(
    ["name", "image"],
    name=NAME, image=TEXT, imagePullPolicy=one_of("Always", "IfNotPresent", "Never"),
    command=TEXTS, args=TEXTS,
    env={"type": "array", "items": record(["name"], name=TEXT, value=TEXT)},
    ports=some(record(
        ["containerPort"],
        name={"type": "string", "maxLength": 15}, containerPort=INTEGER, hostPort=INTEGER,
        protocol=one_of("TCP", "UDP", "SCTP"),
    )),
    securityContext=record(
        runAsNonRoot=BOOLEAN, runAsUser=INTEGER, runAsGroup=INTEGER, readOnlyRootFilesystem=BOOLEAN,
        allowPrivilegeEscalation=BOOLEAN,
        # `privileged` is omitted on purpose, so that it is rejected.
        capabilities=record(drop=some(CAPABILITY), add=some(CAPABILITY)),
        seccompProfile=record(["type"], type=one_of("RuntimeDefault", "Unconfined", "Localhost")),
    ),
    livenessProbe=PROBE, readinessProbe=PROBE, startupProbe=PROBE,
    resources=record(requests=RESOURCES, limits=RESOURCES),
    volumeMounts=some(record(["name", "mountPath"], name=NAME, mountPath=TEXT, readOnly=BOOLEAN)),
)
POD = record(
    ["containers"],
    hostNetwork=BOOLEAN, enableServiceLinks=BOOLEAN, automountServiceAccountToken=BOOLEAN, terminationGracePeriodSeconds=INTEGER,
    dnsPolicy=one_of("ClusterFirst", "ClusterFirstWithHostNet", "Default", "None"),
    nodeSelector=MAP,
    tolerations=some(record(
        key=TEXT, operator=one_of("Exists", "Equal"), value=TEXT,
        effect=one_of("NoSchedule", "PreferNoSchedule", "NoExecute"),
    )),
    containers=some(CONTAINER), initContainers=some(CONTAINER),
    volumes=some(record(
        ["name"],
        name=NAME, configMap=record(["name"], name=NAME, defaultMode=INTEGER),
        emptyDir=record(medium=one_of("", "Memory"), sizeLimit=QUANTITY),
    )),
)
SELECTOR = record(["matchLabels"], matchLabels=MAP)
TEMPLATE = record(["metadata", "spec"], metadata=record(labels=MAP, annotations=MAP), spec=POD)


def kind(version, name, **fields):
    return record(
        ["apiVersion", "kind", "metadata", *fields],
        apiVersion={"const": version}, kind={"const": name}, metadata=META, **fields,
    )


KINDS = {
    "ConfigMap": kind("v1", "ConfigMap", data=MAP),
    "Deployment": kind("apps/v1", "Deployment", spec=record(
        ["selector", "template"], replicas=INTEGER, selector=SELECTOR, template=TEMPLATE,
    )),
    "DaemonSet": kind("apps/v1", "DaemonSet", spec=record(
        ["selector", "template"], selector=SELECTOR, template=TEMPLATE,
        updateStrategy=record(
            ["type"], type=one_of("RollingUpdate", "OnDelete"),
            rollingUpdate=record(maxUnavailable={"type": ["integer", "string"]}),
        ),
    )),
    "PodMonitor": kind("monitoring.coreos.com/v1", "PodMonitor", spec=record(
        ["selector", "podMetricsEndpoints"], selector=SELECTOR,
        podMetricsEndpoints=some(record(port=TEXT, path=TEXT, interval=TEXT)),
    )),
}
