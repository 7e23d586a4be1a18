use synctool_testkit::S3;

#[test]
fn starts_keeps_objects_and_stops() {
    let s3 = S3::start();
    let bucket = s3.bucket("kit");
    let path = format!("/{bucket}/folder/object.bin");
    let body: Vec<u8> = (0..=255).cycle().take(200_000).collect();
    assert_eq!(s3.request("PUT", &path, &body).unwrap().0, 200);
    assert_eq!(s3.request("GET", &path, b"").unwrap(), (200, body.clone()));
    assert_eq!(s3.request("GET", &format!("/{bucket}/nothing"), b"").unwrap().0, 404);
    s3.restart();
    assert_eq!(s3.request("GET", &path, b"").unwrap(), (200, body));
    s3.stop();
    assert!(s3.request("GET", &path, b"").is_err());
}
