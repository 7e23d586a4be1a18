use std::time::Duration;

use synctool_testkit::{eventually, wait_for};

#[test]
fn waits_until_the_condition_holds() {
    let mut looks = 0;
    wait_for("the third look", Duration::from_secs(10), || {
        looks += 1;
        looks == 3
    });
    assert_eq!(looks, 3);
}

#[test]
#[should_panic(expected = "waiting for the moon: still behind a cloud")]
fn says_what_it_waited_for_and_why_not() {
    wait_for("the moon", Duration::from_millis(20), || {
        Err::<(), _>("still behind a cloud")
    });
}

#[tokio::test]
#[should_panic(expected = "waiting for an answer: no answer yet")]
async fn a_condition_that_hangs_is_given_up() {
    eventually("an answer", Duration::from_millis(20), async || {
        std::future::pending::<bool>().await
    })
    .await;
}
