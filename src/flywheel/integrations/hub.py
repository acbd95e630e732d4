"""Publishing a student to a Hugging Face hub, or to any server with the same protocol."""

from __future__ import annotations

from flywheel.datasets.lake.lake import Lake
from flywheel.errors import FlywheelError, InfrastructureError, PolicyError, PrerequisiteError
from flywheel.policies.registry import policy_directory, registered


def push(lake: Lake, name: str, repository: str, *, endpoint: str | None = None, private: bool = True) -> str:
    """Upload a student's folder, its parts as subfolders; the address of the commit.

    `endpoint` None: HF_ENDPOINT, or the public hub; the token is the one that `hf auth login` or HF_TOKEN gave.
    `AutoModelForCausalLM.from_pretrained(repository, subfolder="planner")` loads a part. Raises `PolicyError` where the
    hub refuses, `InfrastructureError` where it does not answer.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

    policy_id = str(registered(lake, name).policy_id)
    api = HfApi(endpoint=endpoint)
    try:
        api.create_repo(repository, private=private, exist_ok=True)
        if private and not api.repo_info(repository).private:
            raise PolicyError(f"{repository} is public; say --public if that is meant, or name another")
        commit = api.upload_folder(
            repo_id=repository,
            folder_path=policy_directory(lake, policy_id),
            commit_message=policy_id,
            ignore_patterns=["*.checkpoint/*"],
        )
    except FlywheelError:
        raise
    except HFValidationError as error:
        raise PolicyError(f"'{repository}' is no repository: {str(error).splitlines()[0]}") from error
    except HfHubHTTPError as error:
        raise PolicyError(f"the hub at {api.endpoint} refuses: {str(error).splitlines()[0]}") from error
    except OfflineModeIsEnabled as error:
        raise PrerequisiteError("Hugging Face's offline mode is on; unset HF_HUB_OFFLINE to publish") from error
    except Exception as error:  # whatever the hub client's HTTP library raises; it has changed it twice
        raise InfrastructureError(f"the hub at {api.endpoint} does not answer: {type(error).__name__}") from error
    return str(commit.commit_url)
