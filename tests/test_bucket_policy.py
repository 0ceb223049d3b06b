"""The policies for AWS: known to its linter, and enough for the jobs and for Ray's autoscaler, but for nothing else."""

import copy
import json
from collections.abc import Callable, Iterator
from typing import Any

import boto3
import pytest
from botocore.exceptions import ClientError
from deployment import ROOT, read
from moto import mock_aws
from moto.core import set_initial_no_auth_action_count

BUCKET = "change-me-bucket"


def load(name: str) -> dict[str, Any]:
    return json.loads((ROOT / "deploy/aws" / name).read_text())


def lint(bucket_policy: dict[str, Any], head_policy: dict[str, Any]) -> list[str]:
    """What cfn-lint says of them, inside the resources that they are written for."""
    from cfnlint.api import lint as cfn_lint

    resources = {
        "Bucket": {"Type": "AWS::S3::BucketPolicy", "Properties": {"Bucket": BUCKET, "PolicyDocument": bucket_policy}},
        "Head": {"Type": "AWS::IAM::ManagedPolicy", "Properties": {"PolicyDocument": head_policy}},
    }
    found = cfn_lint(json.dumps({"AWSTemplateFormatVersion": "2010-09-09", "Resources": resources}))
    return [f"{match.rule.id} {match.message}" for match in found]


def statements(policy: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {statement["Sid"]: statement for statement in policy["Statement"]}


def as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def test_the_linter_finds_nothing() -> None:
    assert lint(load("bucket-policy.json"), load("head-policy.json")) == []


def test_the_linter_finds_a_mistake() -> None:
    bucket, head = load("bucket-policy.json"), load("head-policy.json")
    bucket["Statement"][0]["Action"] = "s3:ListBuckets"
    head["Statement"][0]["Efect"] = head["Statement"][0].pop("Effect")
    found = lint(bucket, head)
    assert any("'listbuckets' is not one of" in message for message in found)
    assert any("'Efect' was unexpected" in message for message in found)


def test_nothing_is_allowed_to_everybody_and_no_action_is_a_wildcard() -> None:
    for name in ("bucket-policy.json", "head-policy.json"):
        for statement in load(name)["Statement"]:
            if statement["Effect"] == "Allow":
                assert statement.get("Principal") != "*"
                assert not any("*" in action for action in as_list(statement["Action"]))
                if "*" in as_list(statement["Resource"]):
                    assert all(action.startswith("ec2:Describe") for action in as_list(statement["Action"]))


def test_plain_text_is_denied() -> None:
    denied = statements(load("bucket-policy.json"))["NothingInPlainText"]
    assert (denied["Effect"], denied["Principal"], denied["Action"]) == ("Deny", "*", "s3:*")
    assert denied["Condition"] == {"Bool": {"aws:SecureTransport": "false"}}
    assert denied["Resource"] == [f"arn:aws:s3:::{BUCKET}", f"arn:aws:s3:::{BUCKET}/*"]


def test_the_bucket_is_for_the_roles_of_the_cluster() -> None:
    (cluster,) = read("cluster.yaml")
    profiles = {node["node_config"]["IamInstanceProfile"]["Name"] for node in cluster["available_node_types"].values()}
    for statement in load("bucket-policy.json")["Statement"]:
        if statement["Effect"] == "Allow":
            roles = {arn.rpartition("/")[2] for arn in statement["Principal"]["AWS"]}
            assert roles == profiles


def test_the_head_may_start_what_cluster_yaml_names_and_stop_only_that() -> None:
    (cluster,) = read("cluster.yaml")
    workers = [node for name, node in cluster["available_node_types"].items() if name != cluster["head_node_type"]]
    allowed = statements(load("head-policy.json"))
    start = allowed["StartInstancesOfThisCluster"]["Condition"]["StringEquals"]
    assert start["ec2:InstanceType"] == [node["node_config"]["InstanceType"] for node in workers]
    assert start["aws:RequestTag/ray-cluster-name"] == cluster["cluster_name"]
    manage = allowed["ManageInstancesOfThisCluster"]
    assert manage["Condition"]["StringEquals"] == {"aws:ResourceTag/ray-cluster-name": cluster["cluster_name"]}
    passed = {arn.rpartition("/")[2] for arn in as_list(allowed["GiveThemTheWorkersProfile"]["Resource"])}
    assert passed == {node["node_config"]["IamInstanceProfile"]["Name"] for node in workers}
    region = cluster["provider"]["region"]
    named = [arn for statement in allowed.values() for arn in as_list(statement["Resource"]) if arn.startswith("arn:aws:ec2:")]
    assert all(arn.split(":")[3] == region for arn in named)


@pytest.fixture(scope="module")
def worker_s3() -> Iterator[Any]:
    """An S3 client that may do what the bucket policy allows; moto enforces it.

    As a policy of a user: moto does not ask who a bucket policy is for, nor for conditions, so the statement on plain text is left out.
    """
    with pytest.MonkeyPatch.context() as patch, mock_aws():
        patch.delenv("AWS_ENDPOINT_URL", raising=False)
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.setenv(name, "testing")
        admin, iam = boto3.client("s3", "us-east-1"), boto3.client("iam", "us-east-1")
        for bucket in (BUCKET, "another"):
            admin.create_bucket(Bucket=bucket)
            for key in ("mpii/a.jpg", "photos/a.jpg", "samples/a", "runs/a", "other/a"):
                admin.put_object(Bucket=bucket, Key=key, Body=b"a")
        policy = copy.deepcopy(load("bucket-policy.json"))
        policy["Statement"] = [statement for statement in policy["Statement"] if statement["Effect"] == "Allow"]
        for statement in policy["Statement"]:
            del statement["Principal"]
        iam.create_user(UserName="worker")
        iam.put_user_policy(UserName="worker", PolicyName="bucket", PolicyDocument=json.dumps(policy))
        key = iam.create_access_key(UserName="worker")["AccessKey"]
        credentials = {"aws_access_key_id": key["AccessKeyId"], "aws_secret_access_key": key["SecretAccessKey"]}
        yield boto3.client("s3", "us-east-1", **credentials)


def is_allowed(call: Callable[[], Any]) -> bool:
    @set_initial_no_auth_action_count(0)
    def run() -> bool:
        try:
            call()
        except ClientError as error:
            if error.response["Error"]["Code"] not in ("AccessDenied", "403"):
                raise
            return False
        return True

    return run()


@pytest.mark.parametrize("folder", ["samples", "runs", "predictions", "reports"])
def test_jobs_may_read_write_and_delete_results(worker_s3: Any, folder: str) -> None:
    place = {"Bucket": BUCKET, "Key": f"{folder}/x/part.parquet"}
    assert is_allowed(lambda: worker_s3.put_object(**place, Body=b"x"))
    assert is_allowed(lambda: worker_s3.get_object(**place))
    assert is_allowed(lambda: worker_s3.head_object(**place))
    upload: dict[str, Any] = {}
    assert is_allowed(lambda: upload.update(worker_s3.create_multipart_upload(**place)))
    assert is_allowed(lambda: worker_s3.upload_part(**place, PartNumber=1, UploadId=upload["UploadId"], Body=b"x"))
    assert is_allowed(lambda: worker_s3.abort_multipart_upload(**place, UploadId=upload["UploadId"]))
    assert is_allowed(lambda: worker_s3.delete_object(**place))


@pytest.mark.parametrize("folder", ["mpii", "photos"])
def test_jobs_may_read_inputs_but_not_change_them(worker_s3: Any, folder: str) -> None:
    place = {"Bucket": BUCKET, "Key": f"{folder}/a.jpg"}
    assert is_allowed(lambda: worker_s3.list_objects_v2(Bucket=BUCKET, Prefix=f"{folder}/"))
    assert is_allowed(lambda: worker_s3.get_object(**place))
    assert not is_allowed(lambda: worker_s3.put_object(**place, Body=b"x"))
    assert not is_allowed(lambda: worker_s3.delete_object(**place))


def test_jobs_may_do_nothing_else(worker_s3: Any) -> None:
    assert not is_allowed(lambda: worker_s3.get_object(Bucket=BUCKET, Key="other/a"))
    assert not is_allowed(lambda: worker_s3.put_object(Bucket=BUCKET, Key="other/b", Body=b"x"))
    assert not is_allowed(lambda: worker_s3.get_object(Bucket="another", Key="runs/a"))
    assert not is_allowed(lambda: worker_s3.list_objects_v2(Bucket="another"))
    assert not is_allowed(lambda: worker_s3.delete_bucket(Bucket=BUCKET))
    assert not is_allowed(lambda: worker_s3.put_bucket_policy(Bucket=BUCKET, Policy="{}"))
    assert not is_allowed(lambda: worker_s3.put_object_acl(Bucket=BUCKET, Key="runs/a", ACL="public-read"))
    assert not is_allowed(lambda: worker_s3.list_buckets())
