//! Services that are refused: which field, why, and in whose words.

use serde_json::{Value, json};

use crate::services::{SERVICES, refusal, service};
use crate::support::Fixture;

fn ports(ports: Value) -> Value {
    json!({ "ports": ports })
}

fn balancer(more: Value) -> Value {
    let mut spec = json!({"type": "LoadBalancer"});
    for (field, value) in more.as_object().unwrap() {
        spec[field] = value.clone();
    }
    spec
}

/// What is asked for, and the end of the message.
fn cases() -> Vec<(Value, &'static str)> {
    let affinity = |seconds: i64| {
        json!({"sessionAffinity": "ClientIP",
            "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": seconds}}})
    };
    vec![
        (
            json!({"type": "Cluster"}),
            r#"spec.type: Unsupported value: "Cluster": supported values: "ClusterIP", "ExternalName", "LoadBalancer", "NodePort""#,
        ),
        (ports(json!([])), "spec.ports: Required value"),
        (ports(json!([{"port": 80}, {"name": "b", "port": 81}])), "spec.ports[0].name: Required value"),
        (
            ports(json!([{"name": "a", "port": 80}, {"name": "a", "port": 81}])),
            r#"spec.ports[1].name: Duplicate value: "a""#,
        ),
        (
            ports(json!([{"name": "a", "port": 80}, {"name": "b", "port": 80}])),
            r#"spec.ports[1]: Duplicate value: {"protocol":"TCP","port":80}"#,
        ),
        (
            ports(json!([{"port": 0}])),
            "spec.ports[0].port: Invalid value: 0: must be between 1 and 65535, inclusive",
        ),
        (
            ports(json!([{"port": 80, "targetPort": 65536}])),
            "spec.ports[0].targetPort: Invalid value: 65536: must be between 1 and 65535, inclusive",
        ),
        (
            ports(json!([{"port": 80, "targetPort": "9"}])),
            r#"spec.ports[0].targetPort: Invalid value: "9": must contain at least one letter (a-z)"#,
        ),
        (
            ports(json!([{"port": 80, "protocol": "ICMP"}])),
            r#"spec.ports[0].protocol: Unsupported value: "ICMP": supported values: "SCTP", "TCP", "UDP""#,
        ),
        (
            ports(json!([{"port": 80, "nodePort": 30080}])),
            "spec.ports[0].nodePort: Forbidden: may not be used when `type` is 'ClusterIP'",
        ),
        (
            json!({"type": "NodePort", "ports": [{"name": "a", "port": 80, "nodePort": 30180},
                {"name": "b", "port": 81, "nodePort": 30180}]}),
            "spec.ports[1].nodePort: Duplicate value: 30180",
        ),
        (
            balancer(ports(json!([{"port": 10250}]))),
            "spec.ports[0]: Invalid value: 10250: may not expose port 10250 externally since it is used by kubelet",
        ),
        (
            json!({"clusterIP": "None", "type": "NodePort"}),
            r#"spec.clusterIPs[0]: Invalid value: "None": may not be set to 'None' for NodePort services"#,
        ),
        (
            json!({"clusterIP": "10.96.0.300"}),
            r#"spec.clusterIPs[0]: Invalid value: "10.96.0.300": must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)"#,
        ),
        (
            json!({"clusterIP": "10.96.0.20", "clusterIPs": ["10.96.0.21"]}),
            r#"spec.clusterIPs: Invalid value: ["10.96.0.21"]: first value must match `clusterIP`"#,
        ),
        (
            json!({"clusterIPs": ["10.96.0.21"]}),
            r#"spec.clusterIPs: Invalid value: ["10.96.0.21"]: must be empty when `clusterIP` is not specified"#,
        ),
        (
            json!({"clusterIP": "None", "clusterIPs": ["None", "10.96.0.21"]}),
            r#"spec.clusterIPs: Invalid value: ["None","10.96.0.21"]: 'None' must be the first and only value"#,
        ),
        (
            json!({"clusterIP": "10.96.0.20", "clusterIPs": ["10.96.0.20", "10.96.0.21"],
                "ipFamilyPolicy": "RequireDualStack"}),
            "may specify no more than one IP for each IP family",
        ),
        (
            json!({"clusterIP": "10.96.0.20", "ipFamilies": ["IPv6"]}),
            r#"spec.clusterIPs[0]: Invalid value: "10.96.0.20": expected an IPv6 value as indicated by `ipFamilies[0]`"#,
        ),
        (
            json!({"ipFamilies": ["IPv4", "IPv6"]}),
            r#"spec.ipFamilyPolicy: Invalid value: "SingleStack": must be 'RequireDualStack' or 'PreferDualStack' when multiple IP families are specified"#,
        ),
        (
            json!({"clusterIP": "10.96.0.20", "clusterIPs": ["10.96.0.20", "fd00:10:96::20"]}),
            r#"spec.ipFamilyPolicy: Invalid value: "SingleStack": must be 'RequireDualStack' or 'PreferDualStack' when multiple cluster IPs are specified"#,
        ),
        (
            json!({"ipFamilies": ["IPv4", "IPv4"], "ipFamilyPolicy": "PreferDualStack"}),
            r#"spec.ipFamilies[1]: Duplicate value: "IPv4""#,
        ),
        (
            json!({"ipFamilyPolicy": "Both"}),
            r#"spec.ipFamilyPolicy: Unsupported value: "Both": supported values: "PreferDualStack", "RequireDualStack", "SingleStack""#,
        ),
        (json!({"type": "ExternalName"}), "spec.externalName: Required value"),
        (
            json!({"type": "ExternalName", "externalName": "Not_A_Name"}),
            r#"spec.externalName: Invalid value: "Not_A_Name": a lowercase RFC 1123 subdomain must consist of"#,
        ),
        (
            json!({"type": "ExternalName", "externalName": "a.example", "clusterIP": "10.96.0.20"}),
            "spec.clusterIPs: Forbidden: may not be set for ExternalName services",
        ),
        (
            json!({"type": "ExternalName", "externalName": "a.example", "ipFamilies": ["IPv4"]}),
            "spec.ipFamilies: Forbidden: may not be set for ExternalName services",
        ),
        (
            json!({"externalIPs": ["127.0.0.1"]}),
            r#"spec.externalIPs[0]: Invalid value: "127.0.0.1": may not be in the loopback range (127.0.0.0/8, ::1/128)"#,
        ),
        (
            json!({"externalIPs": ["web.example"]}),
            r#"spec.externalIPs[0]: Invalid value: "web.example": must be a valid IP address"#,
        ),
        (
            affinity(0),
            "spec.sessionAffinityConfig.clientIP.timeoutSeconds: Invalid value: 0: must be greater than 0 and less than 86400",
        ),
        (
            affinity(86_401),
            "spec.sessionAffinityConfig.clientIP.timeoutSeconds: Invalid value: 86401: must be greater than 0 and less than 86400",
        ),
        (
            json!({"sessionAffinity": "Cookie"}),
            r#"spec.sessionAffinity: Unsupported value: "Cookie": supported values: "ClientIP", "None""#,
        ),
        (
            json!({"externalTrafficPolicy": "Local"}),
            r#"spec.externalTrafficPolicy: Invalid value: "Local": may only be set for externally-accessible services"#,
        ),
        (
            json!({"type": "NodePort", "externalTrafficPolicy": "Near"}),
            r#"spec.externalTrafficPolicy: Unsupported value: "Near": supported values: "Cluster", "Local""#,
        ),
        (
            json!({"internalTrafficPolicy": "Near"}),
            r#"spec.internalTrafficPolicy: Unsupported value: "Near": supported values: "Cluster", "Local""#,
        ),
        (
            json!({"trafficDistribution": "PreferFar"}),
            r#"spec.trafficDistribution: Unsupported value: "PreferFar": supported values: "PreferClose", "PreferSameNode", "PreferSameZone""#,
        ),
        (
            json!({"type": "NodePort", "healthCheckNodePort": 30500}),
            "spec.healthCheckNodePort: Invalid value: 30500: may only be set when `type` is 'LoadBalancer' and `externalTrafficPolicy` is 'Local'",
        ),
        (
            balancer(json!({"externalTrafficPolicy": "Local", "healthCheckNodePort": 80})),
            "spec.healthCheckNodePort: Invalid value: 80: failed to allocate requested HealthCheck NodePort 80: provided port is not in the valid range",
        ),
        (
            json!({"loadBalancerSourceRanges": ["10.0.0.0/8"]}),
            "spec.LoadBalancerSourceRanges: Forbidden: may only be used when `type` is 'LoadBalancer'",
        ),
        (
            balancer(json!({"loadBalancerSourceRanges": ["10.0.0.0/8", "10.0.0.1"]})),
            r#"spec.LoadBalancerSourceRanges[1]: Invalid value: "10.0.0.1": must be a valid CIDR value"#,
        ),
        (
            json!({"loadBalancerClass": "weft.dev/l2"}),
            "spec.loadBalancerClass: Forbidden: may only be used when `type` is 'LoadBalancer'",
        ),
        (
            balancer(json!({"loadBalancerClass": "a/b/c"})),
            r#"spec.loadBalancerClass: Invalid value: "a/b/c": "#,
        ),
        (
            json!({"allocateLoadBalancerNodePorts": true}),
            "spec.allocateLoadBalancerNodePorts: Forbidden: may only be used when `type` is 'LoadBalancer'",
        ),
        (
            ports(json!([{"port": 80, "appProtocol": "-x"}])),
            r#"spec.ports[0].appProtocol: Invalid value: "-x": "#,
        ),
    ]
}

#[tokio::test]
async fn wrong_services_are_refused_with_field_and_reason() {
    let fixture = Fixture::start().await;
    let admin = fixture.admin();
    for (spec, expected) in cases() {
        let message = refusal(&admin, spec.clone()).await;
        assert!(message.starts_with("Service \"refused\" is invalid: "), "{spec}: {message}");
        assert!(message.contains(expected), "{spec}\n  answered {message}\n  expected {expected}");
    }
}

#[tokio::test]
async fn annotations_that_contradict_are_refused() {
    let fixture = Fixture::start().await;
    let mut both = service("both", json!({}));
    both["metadata"]["annotations"] = json!({"service.kubernetes.io/topology-mode": "Auto",
        "service.kubernetes.io/topology-aware-hints": "Disabled"});
    let refused = fixture.admin().post(SERVICES, both).await.expect(422);
    let field = &refused["details"]["causes"][0]["field"];
    assert_eq!(field, "metadata.annotations[service.kubernetes.io/topology-mode]");
    let mut ranges = service("ranges", json!({"type": "LoadBalancer"}));
    ranges["metadata"]["annotations"] =
        json!({"service.beta.kubernetes.io/load-balancer-source-ranges": "10.0.0.0/8, 10.0.0.1"});
    let refused = fixture.admin().post(SERVICES, ranges).await.expect(422);
    assert!(refused["message"].as_str().unwrap().contains("\"10.0.0.1\": must be a valid CIDR"), "{refused}");
}

#[tokio::test]
async fn one_family_clusters_say_what_they_lack() {
    let fixture = Fixture::start_with(|config| config.service_ranges.truncate(1)).await;
    let admin = fixture.admin();
    for (spec, expected) in [
        (
            json!({"ipFamilyPolicy": "RequireDualStack"}),
            "spec.ipFamilyPolicy: Invalid value: \"RequireDualStack\": this cluster is not configured for dual-stack services",
        ),
        (
            json!({"ipFamilies": ["IPv6"]}),
            "spec.ipFamilies[0]: Invalid value: \"IPv6\": not configured on this cluster",
        ),
        (
            json!({"clusterIP": "fd00:10:96::9"}),
            "spec.clusterIPs[0]: Invalid value: [\"fd00:10:96::9\"]: IPv6 is not configured on this cluster",
        ),
    ] {
        let message = refusal(&admin, spec).await;
        assert!(message.contains(expected), "{message}");
    }
    let preferred = service("preferred", json!({"ipFamilyPolicy": "PreferDualStack"}));
    let preferred = admin.post(SERVICES, preferred).await.expect(201);
    assert_eq!(preferred["spec"]["ipFamilies"], json!(["IPv4"]));
}
