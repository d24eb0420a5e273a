//! Errors of getters and missing groups, between Go nodes and larder nodes.

use crate::cluster::{Node, keys_of_then, keys_owned_by, request, two_and_two, value_of};

#[test]
#[ignore = "needs Go: tests/interop/run.sh"]
fn getter_error_of_go_owner_makes_larder_run_its_own_getter() {
    let nodes = two_and_two();
    let (go, larder) = (&nodes[0], &nodes[2]);
    for (kind, status) in [("error:", 500), ("missing:", 404)] {
        for key in &keys_of_then(&nodes, go, &nodes[1], kind) {
            let got = larder.get(key);
            // Go answers every error with 500 and a text. The kind comes from larder's own getter.
            assert_eq!(got.status, status, "{}", got.text());
            let text = format!("no luck with {key}");
            assert!(got.text().contains(&text), "{}", got.text());
            assert_eq!((go.loads_of(key), larder.loads_of(key)), (1, 1), "{key}");
            assert_eq!(loads_in(&nodes, key), 2, "{key}");
        }
    }
}

#[test]
#[ignore = "needs Go: tests/interop/run.sh"]
fn getter_error_of_larder_owner_makes_go_run_its_own_getter() {
    let nodes = two_and_two();
    let (go, larder) = (&nodes[0], &nodes[2]);
    for kind in ["error:", "missing:"] {
        let key = &keys_owned_by(go, &[larder], kind, 1)[0];
        let got = go.get(key);
        assert_eq!(got.status, 500);
        assert!(
            got.text().contains(&format!("no luck with {key}")),
            "{}",
            got.text()
        );
        assert_eq!((go.loads_of(key), larder.loads_of(key)), (1, 1), "{key}");
        // Between larder nodes the owner's error is final.
        let key = &keys_owned_by(go, &[larder], &format!("{kind}ours-"), 1)[0];
        nodes[3].get(key);
        assert_eq!(loads_in(&nodes, key), 1, "{key}");
    }
}

#[test]
#[ignore = "needs Go: tests/interop/run.sh"]
fn group_that_only_the_asker_has_is_loaded_by_the_asker() {
    let nodes = two_and_two();
    let (go, larder) = (&nodes[0], &nodes[2]);
    let of_go = &keys_owned_by(go, &[go], "ours-", 1)[0];
    let got = larder.get_with(of_go, "only-larder", None);
    assert!(
        got.status == 200 && got.body == value_of(of_go.as_bytes()),
        "{}",
        got.text()
    );
    assert_eq!((larder.loads_of(of_go), loads_in(&nodes, of_go)), (1, 1));

    let of_larder = &keys_owned_by(go, &[larder], "gos-", 1)[0];
    let got = go.get_with(of_larder, "only-go", None);
    assert!(
        got.status == 200 && got.body == value_of(of_larder.as_bytes()),
        "{}",
        got.text()
    );
    assert_eq!(
        (go.loads_of(of_larder), loads_in(&nodes, of_larder)),
        (1, 1)
    );
}

/// So removals and batched requests do not work at Go nodes.
#[test]
#[ignore = "needs Go: tests/interop/run.sh"]
fn go_answers_every_method_like_get() {
    let nodes = two_and_two();
    let go = &nodes[0];
    for method in ["DELETE", "PUT"] {
        let key = &keys_owned_by(go, &[go], &format!("{method}-"), 1)[0];
        let url = format!("{}/_groupcache/values/{key}", go.url);
        let got = request(method, &url, b"other");
        assert_eq!(got.status, 200, "{method}");
        assert_eq!(&got.body[2..], value_of(key.as_bytes()), "{method}");
        assert_eq!(
            go.loads_of(key),
            1,
            "{method} loads the key, if it is not cached"
        );
        go.expect(key);
        assert_eq!(
            go.loads_of(key),
            1,
            "the method does not remove the cached value"
        );
    }
    let url = format!("{}/_groupcache/values", go.url);
    let got = request("POST", &url, b"");
    assert_eq!((got.status, got.text().trim()), (400, "bad request"));
    // golang/groupcache takes the removal request of groupcache-go v3 for a get of this key.
    request("POST", &format!("{url}/_remove-keys/"), b"");
    assert_eq!(loads_in(&nodes, "_remove-keys/"), 1);
}

fn loads_in(nodes: &[Node], key: &str) -> u64 {
    nodes.iter().map(|node| node.loads_of(key)).sum()
}
