"""The pages of `flywheel ui`: a lake to look at, rendered on the server; nothing is loaded from elsewhere.

Texts of trajectories are data: they are escaped, and the content security policy forbids scripts other than ours.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from itertools import chain
from typing import Annotated, Any
from urllib.parse import urlsplit

from fastapi import FastAPI, Form, Request
from fastapi.responses import (
    FileResponse,
    HTMLResponse,
    JSONResponse,
    PlainTextResponse,
    RedirectResponse,
    Response,
    StreamingResponse,
)
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException
from starlette.middleware.trustedhost import TrustedHostMiddleware

from flywheel.datasets.lake.annotations import LABELS, Kind, annotate, annotations_of, somebody
from flywheel.datasets.lake.lake import Lake
from flywheel.datasets.lake.reader import Reader
from flywheel.datasets.lake.reading import QueryLimits
from flywheel.datasets.lake.show import whole_id
from flywheel.datasets.lake.views import VIEWS
from flywheel.errors import FlywheelError
from flywheel.messages import Image
from flywheel.text import printable
from flywheel.ui import comparison, curves, lineage, overview, query, run, selection
from flywheel.ui.rendering import HERE, make_environment

LIMITS = QueryLimits(seconds=15.0, memory="1GB")
"""Of each question that a page asks."""
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self'; connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
HOSTS = ["localhost", "127.0.0.1", "[::1]"]
"""Names under which a browser on this machine asks; other names are a page elsewhere that points its own at us."""
FRAGMENTS = ("/steps", "/text", "/prompt")
"""Addresses of parts of a page, whose errors are a line."""
SHOWN_IMAGES = ("image/png", "image/jpeg", "image/gif", "image/webp")
DESCRIBED = 4
"""Runs that are kept ready while one scrolls through them."""
Render = Callable[..., HTMLResponse]


def make_app(lake: Lake) -> FastAPI:
    """The application over one lake."""
    reader = Reader(lake, {"runs": selection.RUNS}, LIMITS)
    render = _renderer(lake, reader)
    app = FastAPI(title="Flywheel", openapi_url=None)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=HOSTS)
    app.mount("/static", StaticFiles(directory=HERE / "static"), name="static")

    @app.middleware("http")
    async def guarded(request: Request, call_next: Any) -> Response:
        if _is_foreign(request):
            return PlainTextResponse("this request comes from another page", 403)
        response: Response = await call_next(request)
        response.headers.update(HEADERS)
        return response

    @app.exception_handler(FlywheelError)
    async def on_flywheel_error(request: Request, error: FlywheelError) -> Response:
        return _refused(request, 400, str(error))

    @app.exception_handler(HTTPException)
    async def on_http_error(request: Request, error: HTTPException) -> Response:
        return _refused(request, error.status_code, str(error.detail))

    def _refused(request: Request, status: int, problem: str) -> Response:
        if request.url.path.endswith(FRAGMENTS):
            return PlainTextResponse(printable(problem), status)
        return render("error.html", status=status, problem=problem)

    @lru_cache(maxsize=DESCRIBED)
    def described(state: tuple[Any, ...], name: str) -> dict[str, Any]:
        return run.describe(reader, name)

    @lru_cache(maxsize=1)
    def images(state: tuple[Any, ...], name: str) -> dict[str, Image]:
        return lake.images(name)

    @app.get("/")
    def flywheel() -> Response:
        with reader.session():
            facts = overview.facts(reader, overview.iterations(reader), "runs")
        return render("flywheel.html", drawings=overview.drawings(facts), **facts)

    @app.get("/live")
    def live() -> Response:
        return JSONResponse({"state": "-".join(map(str, reader.state()))})

    @app.get("/runs")
    def runs(request: Request) -> Response:
        chosen = selection.Selection.of(request.query_params.multi_items())
        with reader.session():
            selection.match(reader, chosen)
            total, rows = selection.page_of(reader, chosen)
            ids = [row["trajectory_id"] for row in rows]
            return render(
                "runs.html",
                chosen=chosen,
                total=total,
                pages=max(1, -(-total // selection.PAGE_RUNS)),
                runs=rows,
                facets=selection.facets(reader, chosen),
                excerpts=selection.excerpts(reader, ids, chosen.text) if chosen.text else {},
                annotations=annotations_of(reader, ids),
                tags=reader.rows("select tag, count(*) as count from tags group by tag order by count desc limit 30"),
                orders=list(selection.ORDERS),
            )

    @app.get("/runs/{name}")
    def one_run(name: str, first: int = 0) -> Response:
        with reader.session():
            description = described(reader.seen, name)
            trajectory_id = description["trajectory_id"]
            annotations = annotations_of(reader, [trajectory_id]).get(trajectory_id, [])
            touched = lineage.touched(reader, trajectory_id)
        about = {"annotations": annotations, "labels": LABELS, "touched": touched, "me": somebody()}
        return render("run.html", run=description, first=max(first, 0), shown=run.STEPS, **about)

    @app.get("/runs/{name}/steps")
    def some_steps(name: str, first: int = 0) -> Response:
        with reader.session():
            description = described(reader.seen, name)
        return render("_steps.html", run=description, first=max(first, 0), shown=run.STEPS)

    @app.get("/runs/{name}/text")
    def whole_text(name: str, step: int, field: str, call: int = 0) -> Response:
        with reader.session():
            description = described(reader.seen, name)
        return PlainTextResponse(printable(run.whole_text(description, step, field, call)))

    @app.get("/runs/{name}/prompt")
    def prompt(name: str, step: int) -> Response:
        from flywheel.evaluation.prompts_read import prompts_read

        with reader.session():
            trajectory_id = whole_id(reader, name)
        return render("_prompt.html", prompts=prompts_read(lake, trajectory_id, step))

    @app.post("/runs/{name}/annotations")
    def add_annotation(
        name: str,
        kind: Annotated[Kind, Form()],
        value: Annotated[str, Form()],
        withdrawn: Annotated[bool, Form()] = False,
    ) -> Response:
        annotate(lake, name, kind, value, withdrawn=withdrawn)
        reader.expire()
        return RedirectResponse(f"/runs/{name}#annotations", status_code=303)

    @app.get("/runs/{name}/images/{sha256}")
    def image(name: str, sha256: str) -> Response:
        with reader.session():
            screenshot = images(reader.seen, name).get(sha256)
        if screenshot is None or screenshot.media_type not in SHOWN_IMAGES:
            raise HTTPException(404, "no such image")
        return Response(
            screenshot.data, media_type=screenshot.media_type, headers={"Cache-Control": "private, immutable"}
        )

    @app.get("/compare")
    def compare(request: Request) -> Response:
        params = request.query_params
        if chosen := params.getlist("run"):
            names = chosen[: comparison.MOST]
            with reader.session():
                descriptions = [described(reader.seen, name) for name in names]
            aligned = comparison.side_by_side(descriptions, selection.page_number(params.get("page", "")))
            return render("compare_runs.html", names=names, left_out=len(chosen) - len(names), **aligned)
        with reader.session():
            known = {
                "known": comparison.known_policies(reader),
                "turns": [turn["iteration"] for turn in overview.iterations(reader)],
                "titles": [f"{row['name']}@v{row['version']}" for row in lineage.datasets(reader)],
            }
            compared: dict[str, Any] = {"pairs": None, "roles": None, "groups": None}
            asked = {name: params.get(name, "") for name in ("first", "second", "where", "order", "result", "page")}
            before, after = params.get("before", ""), params.get("after", "")
            if before in known["titles"] and after in known["titles"]:
                compared["groups"] = comparison.datasets(reader, before, after)
            elif {before, after} <= set(map(str, known["turns"])):
                compared["roles"] = comparison.iterations(reader, int(before), int(after))
            elif asked["first"] and asked["second"]:
                compared |= comparison.policies(reader, **asked)
        return render("compare.html", asked=asked, before=before, after=after, **known, **compared)

    @app.get("/lineage")
    def all_lineage() -> Response:
        with reader.session():
            return render("lineage.html", students=lineage.students(reader), datasets=lineage.datasets(reader))

    @app.get("/lineage/{policy_id}")
    def lineage_of(policy_id: str) -> Response:
        with reader.session():
            columns = lineage.graph(reader, policy_id)
        return render(
            "lineage_of.html", policy_id=policy_id, columns=columns, curves=curves.drawings(lake.root, policy_id)
        )

    @app.get("/sql")
    def sql(q: str = "") -> Response:
        answer: dict[str, Any] = {"problem": ""}
        q = q.replace("\r\n", "\n")
        try:
            answer |= query.run_query(lake, q) if q.strip() else {}
        except FlywheelError as error:
            answer = {"problem": str(error)}
        return render("sql.html", q=q, views=VIEWS, examples=query.EXAMPLES, **answer)

    @app.get("/sql/export")
    def export(q: str, form: str = "csv") -> Response:
        if form not in query.FORMS:
            raise HTTPException(404, f"export is {', '.join(query.FORMS)}")
        pieces = query.export(lake, q, form)
        first = next(pieces, b"")
        disposition = {"Content-Disposition": f'attachment; filename="flywheel.{form}"'}
        return StreamingResponse(chain([first], pieces), media_type=query.FORMS[form], headers=disposition)

    @app.get("/favicon.ico")
    def icon() -> Response:
        return FileResponse(HERE / "static" / "icon.svg", media_type="image/svg+xml")

    return app


def _is_foreign(request: Request) -> bool:
    """Does another page make the browser ask, other than by a link to a page that costs little?"""
    origin = request.headers.get("origin")
    if request.method not in ("GET", "HEAD"):
        return bool(origin) and urlsplit(origin).netloc != request.url.netloc
    is_link = request.headers.get("sec-fetch-mode") == "navigate" and not request.url.path.startswith("/sql")
    return request.headers.get("sec-fetch-site") in ("cross-site", "same-site") and not is_link


def _renderer(lake: Lake, reader: Reader) -> Render:
    environment = make_environment(lake.name)

    def render(template: str, status: int = 200, **context: Any) -> HTMLResponse:
        state = "-".join(map(str, reader.seen))
        return HTMLResponse(environment.get_template(template).render(state=state, **context), status)

    return render
