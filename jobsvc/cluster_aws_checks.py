"""What is wrong with a cluster file, as far as AWS can tell before anything is started.

Every question is one that reads, and each is optional: without credentials, without the right to ask or
without an answer its finding says "not checked". Only what AWS has answered is held against the file.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator
from email.utils import parsedate_to_datetime
from typing import Any

from .cluster_file import ClusterFile, NodeType
from .cluster_file_checks import (
    CLUSTER_TAG,
    Complaints,
    is_placeholder,
    managers,
    open_to_all,
    ports_of,
    profile_of,
    workers,
)
from .doctor import Finding
from .s3_store import deletes_objects, may_touch, parse_s3_url

ATTEMPTS = 2
CONNECT_TIMEOUT_SECONDS = 5
READ_TIMEOUT_SECONDS = 20
SKEW_SECONDS_MAX = 60.0  # S3 refuses at 15 minutes, and a clock that is off now goes on
REFUSED = {
    "AuthFailure",
    "ExpiredToken",
    "InvalidClientTokenId",
    "SignatureDoesNotMatch",
    "UnrecognizedClientException",
}
ROLE_OF_SPOT = "AWSServiceRoleForEC2Spot"
ALLOWED = "allowed"

# Each counts the vCPUs of all Standard families together, in one region of the account.
ON_DEMAND_QUOTA, SPOT_QUOTA = "L-1216C47A", "L-34B43A08"
STANDARD_FAMILIES = {"a", "c", "d", "h", "i", "im", "is", "m", "r", "t", "z"}

Clients = Callable[[str], Any]  # name of a service -> boto3's client


class Question:
    """A cluster file with somebody to ask about it; answers that several checks need are kept."""

    def __init__(self, cluster: ClusterFile, client: Clients) -> None:
        self.cluster = cluster
        self.client = client
        self.role_of_profile: dict[str, str] = {}  # ARNs, of the profiles that exist
        self.types: dict[str, dict[str, Any]] = {}  # what EC2 says of an instance type
        self.vpcs: set[str] = set()  # of the security groups

    def chosen(self, field: str) -> list[str]:
        """Every value of a field of node_config that is filled in."""
        found: set[str] = set()
        for each in self.cluster.node_types.values():
            value = each.node_config.get(field) or []
            found |= {str(one) for one in (value if isinstance(value, list) else [value])}
        return sorted(each for each in found if not is_placeholder(each))


def boto3_clients(cluster: ClusterFile) -> Clients:
    """boto3 with its usual places for credentials, in the cluster's region."""
    import boto3
    from botocore.config import Config

    session = boto3.session.Session()
    config = Config(
        retries={"mode": "standard", "total_max_attempts": ATTEMPTS},
        connect_timeout=CONNECT_TIMEOUT_SECONDS,
        read_timeout=READ_TIMEOUT_SECONDS,
        s3={"addressing_style": "path"} if cluster.s3_endpoint_url else {},
    )

    @functools.cache
    def client(service: str) -> Any:
        options = cluster.aws_credentials  # as Ray uses them
        if service == "s3" and cluster.s3_endpoint_url:
            options["endpoint_url"] = cluster.s3_endpoint_url
        return session.client(service, region_name=cluster.region, config=config, **options)

    return client


def examine_aws(cluster: ClusterFile, client: Clients, now: Callable[[], float]) -> list[Finding]:
    """Ask AWS all that can be asked."""
    if is_placeholder(cluster.region):
        return [Finding("AWS", True, "not checked: the region is not filled in")]
    identity, date = _identity(client)
    findings = [identity]
    if date:
        skew = now() - parsedate_to_datetime(date).timestamp()
        text = f"{abs(skew):.0f} s {'ahead of' if skew > 0 else 'behind'} AWS"
        findings.append(Finding("clock", abs(skew) <= SKEW_SECONDS_MAX, text))
    if identity.ok and date:
        question = Question(cluster, client)
        findings += [_finding(name, check, good, question) for name, (check, good) in CHECKS.items()]
    return findings


def _identity(client: Clients) -> tuple[Finding, str]:
    """Who we are to AWS, and the date of its answer ("" if there was none)."""
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        answer = client("sts").get_caller_identity()
        return Finding("AWS", True, f"account {answer['Account']}, as {answer['Arn']}"), _date(answer)
    except ClientError as error:
        code = error.response.get("Error", {}).get("Code", "")
        return Finding("AWS", code not in REFUSED, f"not checked: {error}"), _date(error.response)
    except BotoCoreError as error:
        return Finding("AWS", True, f"not checked: {error}"), ""


def _date(answer: Any) -> str:
    return str(answer.get("ResponseMetadata", {}).get("HTTPHeaders", {}).get("date", ""))


def _finding(name: str, check: Callable[[Question], Complaints], good: str, question: Question) -> Finding:
    from botocore.exceptions import BotoCoreError, ClientError

    complaints: list[str] = []
    try:
        complaints.extend(check(question))
    except (BotoCoreError, ClientError) as error:
        if not complaints:
            return Finding(name, True, f"not checked: {error}")
        complaints.append(f"the rest was not checked: {error}")
    if name in WARNINGS and complaints:
        return Finding(name, True, f"warning: {'; '.join(complaints)}")
    return Finding(name, not complaints, "; ".join(complaints) or good)


def _unless(codes: str, ask: Callable[..., Any], **arguments: Any) -> Any:
    """The answer, or None if AWS says one of these codes."""
    from botocore.exceptions import ClientError

    try:
        return ask(**arguments)
    except ClientError as error:
        if error.response.get("Error", {}).get("Code", "") in codes.split():
            return None
        raise


# --- the bucket -----------------------------------------------------------------------------------


def bucket(question: Question) -> Complaints:
    from botocore.exceptions import ClientError

    cluster = question.cluster
    name, prefix = _place(cluster)
    if not name:
        return
    s3 = question.client("s3")
    try:
        answer, code = s3.head_bucket(Bucket=name), ""
    except ClientError as error:
        answer, code = error.response, error.response.get("Error", {}).get("Code", "")
    if code in ("404", "NoSuchBucket"):
        yield f"bucket {name} does not exist: aws s3 mb s3://{name} --region {cluster.region}"
        return
    region = answer["ResponseMetadata"]["HTTPHeaders"].get("x-amz-bucket-region", cluster.region)
    if region != cluster.region and not cluster.s3_endpoint_url:
        yield f"bucket {name} is in {region}, the machines in {cluster.region}: slow, and traffic is paid for"
        return
    try:
        yield from _rules(s3, name, f"{prefix}/")
    except ClientError:
        if not code:
            raise
        yield f"bucket {name}: S3 says {code}; it may be another account's"  # no right to list is not enough


def _rules(s3: Any, bucket: str, folder: str) -> Complaints:
    """What the bucket does to objects by itself."""
    lifecycle = _unless("NoSuchLifecycleConfiguration", s3.get_bucket_lifecycle_configuration, Bucket=bucket)
    rules = [rule for rule in (lifecycle or {}).get("Rules", []) if may_touch(rule, folder)]
    for rule in rules:
        name = f"lifecycle rule {rule.get('ID', '')!r} of bucket {bucket}"
        if deletes_objects(rule):
            yield f"{name} deletes objects under {folder} by age, and with them the journal"
        elif rule.get("Transitions"):
            yield f"{name} moves objects under {folder} to another storage class"
    versioning = s3.get_bucket_versioning(Bucket=bucket).get("Status")
    if versioning == "Enabled" and not any(rule.get("NoncurrentVersionExpiration") for rule in rules):
        yield f"bucket {bucket} keeps every old version, and no rule ends them: deleted objects go on costing"


def _place(cluster: ClusterFile) -> tuple[str, str]:
    """Bucket and prefix; empty if the file does not say, which is the file's own finding."""
    if is_placeholder(cluster.data) or not cluster.data.startswith("s3://"):
        return "", ""
    return parse_s3_url(cluster.data)


# --- what machines are made of --------------------------------------------------------------------


def images(question: Question) -> Complaints:
    ec2, region = question.client("ec2"), question.cluster.region
    for image_id in (each for each in question.chosen("ImageId") if each.startswith("ami-")):
        codes = "InvalidAMIID.NotFound InvalidAMIID.Malformed InvalidAMIID.Unavailable"
        answer = _unless(codes, ec2.describe_images, ImageIds=[image_id])
        if not answer or not answer["Images"]:
            yield f"image {image_id} does not exist in {region}: each region has its own"
            continue
        image = answer["Images"][0]
        if image.get("State") != "available":
            yield f"image {image_id} is {image.get('State')}"
        users = [
            each
            for each in question.cluster.node_types.values()
            if each.node_config.get("ImageId") == image_id
        ]
        for each in users:
            devices = [entry.get("DeviceName") for entry in each.node_config.get("BlockDeviceMappings") or []]
            if devices and image.get("RootDeviceName") not in devices:
                yield (
                    f"{each.name}: its disk is {devices[0]}, the image's {image.get('RootDeviceName')}:"
                    " there would be a second disk"
                )
            architectures = question.types.get(each.instance_type, {}).get("ProcessorInfo", {})
            known = architectures.get("SupportedArchitectures")
            if known and image.get("Architecture", known[0]) not in known:
                yield f"{each.name}: image {image_id} is for {image.get('Architecture')}, the machine is not"


def instance_types(question: Question) -> Complaints:
    ec2 = question.client("ec2")
    for name in question.chosen("InstanceType"):
        answer = _unless("InvalidInstanceType", ec2.describe_instance_types, InstanceTypes=[name])
        if not answer or not answer["InstanceTypes"]:
            yield f"{name} does not exist in {question.cluster.region}"
        else:
            question.types[name] = answer["InstanceTypes"][0]
    for each in workers(question.cluster):
        cores = question.types.get(each.instance_type, {}).get("VCpuInfo", {}).get("DefaultVCpus")
        if cores and each.resources.get("CPU", 0) > cores:
            yield f"{each.name}: CPU is {each.resources['CPU']:g}, and {each.instance_type} has {cores} vCPUs"


def key_pairs(question: Question) -> Complaints:
    ec2 = question.client("ec2")
    for name in question.chosen("KeyName"):
        if _unless("InvalidKeyPair.NotFound", ec2.describe_key_pairs, KeyNames=[name]) is None:
            yield f"key pair {name} does not exist in {question.cluster.region}"


def security_groups(question: Question) -> Complaints:
    ec2, wanted = question.client("ec2"), question.chosen("SecurityGroupIds")
    for group_id in wanted:
        codes = "InvalidGroup.NotFound InvalidGroupId.Malformed"
        answer = _unless(codes, ec2.describe_security_groups, GroupIds=[group_id])
        if not answer or not answer["SecurityGroups"]:
            yield f"security group {group_id} does not exist in {question.cluster.region}"
            continue
        group = answer["SecurityGroups"][0]
        question.vpcs.add(group["VpcId"])
        permissions = group.get("IpPermissions", [])
        for permission in filter(open_to_all, permissions):
            yield f"security group {group_id} opens {ports_of(permission)} to the whole world"
        inside = [
            pair.get("GroupId")
            for permission in permissions
            if permission.get("IpProtocol") == "-1"
            for pair in permission.get("UserIdGroupPairs", [])
        ]
        if not set(inside) & set(wanted):
            yield f"security group {group_id} does not let its own members reach each other"


def subnets(question: Question) -> Complaints:
    """After `security_groups`: their VPC is where Ray looks."""
    chosen = question.chosen("SubnetIds")
    if not chosen and not question.vpcs:
        return
    ec2 = question.client("ec2")
    by_vpc = {"Filters": [{"Name": "vpc-id", "Values": sorted(question.vpcs)}]}
    answer = _unless(
        "InvalidSubnetID.NotFound", ec2.describe_subnets, **({"SubnetIds": chosen} if chosen else by_vpc)
    )
    if answer is None:
        yield f"of the subnets {', '.join(chosen)} not all exist in {question.cluster.region}"
        return
    inner = bool(question.cluster.document["provider"].get("use_internal_ips"))
    usable = [each for each in answer["Subnets"] if inner or each.get("MapPublicIpOnLaunch")]
    if not usable:
        yield "no subnet there gives public addresses: provider.use_internal_ips: True, or other subnets"
    elif len({each["AvailabilityZone"] for each in usable}) == 1:
        yield f"all subnets are in {usable[0]['AvailabilityZone']}: when it has no machines, nor will you"


def quotas(question: Question) -> Complaints:
    """After `instance_types`. Other machines of the account count too, so room here is no promise."""
    for code, is_spot in ((ON_DEMAND_QUOTA, False), (SPOT_QUOTA, True)):
        needed = _cores_at_most(question, is_spot)
        if not needed:
            continue
        answer = question.client("service-quotas").get_service_quota(ServiceCode="ec2", QuotaCode=code)
        allowed = answer["Quota"]["Value"]
        if needed > allowed:
            yield (
                f"quota {code}: {allowed:g} vCPUs {'on spot' if is_spot else 'on demand'},"
                f" and with max_workers it may come to {needed}"
            )


def _cores_at_most(question: Question, is_spot: bool) -> int:
    """vCPUs of Standard types that this cluster has in one market when it is as large as it may be."""
    cluster, cores, total = question.cluster, [], 0
    for each in cluster.node_types.values():
        family = re.match("[a-z]*", each.instance_type)
        if each.is_spot is not is_spot or family is None or family[0] not in STANDARD_FAMILIES:
            continue
        of_one = int(question.types.get(each.instance_type, {}).get("VCpuInfo", {}).get("DefaultVCpus", 0))
        if each is cluster.head:
            total += of_one
        else:
            cores.append((of_one, each.max_workers))
    left = cluster.max_workers
    for of_one, machines in sorted(cores, reverse=True):
        total += of_one * min(machines, left)
        left -= min(machines, left)
    return total


# --- rights ---------------------------------------------------------------------------------------


def profiles(question: Question) -> Complaints:
    iam = question.client("iam")
    for name in sorted({profile_of(each) or "" for each in question.cluster.node_types.values()} - {""}):
        answer = _unless("NoSuchEntity", iam.get_instance_profile, InstanceProfileName=name)
        if answer is None:
            yield f"instance profile {name} does not exist: docs/ec2.md makes it out of iam/"
        elif not answer["InstanceProfile"]["Roles"]:
            yield f"instance profile {name} has no role"
        else:
            question.role_of_profile[name] = answer["InstanceProfile"]["Roles"][0]["Arn"]
    is_spot = any(each.is_spot for each in question.cluster.node_types.values())
    if is_spot and _unless("NoSuchEntity", iam.get_role, RoleName=ROLE_OF_SPOT) is None:
        yield "spot: aws iam create-service-linked-role --aws-service-name spot.amazonaws.com (once)"


def rights(question: Question) -> Complaints:
    """After `profiles`. Asks IAM to try what each kind of machine will do, and what a worker must not."""
    cluster = question.cluster
    for each in (cluster.head, *managers(cluster)):
        for action, resource, context in _needs_of_head(question, each):
            if not _may(question, each, action, resource, context):
                yield f"{each.name}: role {_role(question, each)} may not {action} on {resource}"
    name, prefix = _place(cluster)
    if not name:
        return
    one_of_each_role = {profile_of(each): each for each in workers(cluster)}
    for each in one_of_each_role.values():
        objects = f"arn:aws:s3:::{name}/{prefix}"
        for action, key in (("s3:GetObject", "payloads/x"), ("s3:PutObject", "results/x")):
            if not _may(question, each, action, f"{objects}/{key}", {}):
                yield f"{each.name}: role {_role(question, each)} may not {action} on {objects}/{key}"
        asked = f"{objects}/pulse/x"
        if _role(question, each) and _may(question, each, "s3:DeleteObject", asked, {}):
            yield f"{each.name}: its jobs may delete {asked}, so a dead head could pass for a living one"
        secret = f"{objects}/cluster/files/x"
        if _role(question, each) and _may(question, each, "s3:GetObject", secret, {}):
            yield f"{each.name}: its jobs may read {secret}, where the cluster's SSH key is"


def _needs_of_head(question: Question, node_type: NodeType) -> Iterator[tuple[str, str, dict[str, str]]]:
    region, role = question.cluster.region, _role(question, node_type)
    account = role.split(":")[4] if role else ""
    for passed in sorted(set(question.role_of_profile.values())):
        yield "iam:PassRole", passed, {"iam:PassedToService": "ec2.amazonaws.com"}
    tag = {"aws:RequestedRegion": region, f"aws:RequestTag/{CLUSTER_TAG}": question.cluster.cluster_name}
    yield "ec2:RunInstances", f"arn:aws:ec2:{region}:{account}:instance/*", tag
    name, prefix = _place(question.cluster)
    if name:
        yield "s3:PutObject", f"arn:aws:s3:::{name}/{prefix}/log/x", {}


def _role(question: Question, node_type: NodeType) -> str:
    return question.role_of_profile.get(profile_of(node_type) or "", "")


def _may(
    question: Question, node_type: NodeType, action: str, resource: str, context: dict[str, str]
) -> bool:
    """True too where there is no role to ask about: that is `profiles`' finding."""
    role = _role(question, node_type)
    if not role:
        return True
    answer = question.client("iam").simulate_principal_policy(
        PolicySourceArn=role,
        ActionNames=[action],
        ResourceArns=[resource],
        ContextEntries=[
            {"ContextKeyName": name, "ContextKeyValues": [value], "ContextKeyType": "string"}
            for name, value in context.items()
        ],
    )
    return all(each["EvalDecision"] == ALLOWED for each in answer["EvaluationResults"])


WARNINGS = {"quotas"}  # what need not be wrong
CHECKS: dict[str, tuple[Callable[[Question], Complaints], str]] = {
    "bucket": (bucket, "in the machines' region, and nothing deletes in it"),
    "instance types": (instance_types, "offered"),
    "quotas": (quotas, "room for all machines of the file, if the account has no others"),
    "images": (images, "there"),
    "key pair": (key_pairs, "there"),
    "security group": (security_groups, "open to its members, not to the world"),
    "subnets": (subnets, "in several zones"),
    "instance profiles": (profiles, "there, with a role"),
    "rights": (rights, "head and workers may do what they must"),
}
