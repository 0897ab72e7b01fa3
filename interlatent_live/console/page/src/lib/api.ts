// Questions to the console's REST interface; a refusal is one sentence, and it is shown as it is.

export const PREFIX = "/api/v1";
const CSRF = "X-CSRF-Token";

export class RefusedError extends Error {
  constructor(
    message: string,
    /** HTTP status; 0 when nobody answered at all. */
    readonly status: number,
    /** The console's word for programs; "" when it gave none. */
    readonly why = "",
    /** Characters from 0 to the mistake in what was sent; null when it has no place. */
    readonly position: number | null = null,
  ) {
    super(message);
  }
}

export async function ask<T>(
  path: string,
  query: Record<string, string | number | boolean | undefined> = {},
  signal?: AbortSignal,
  csrf = "",
): Promise<T> {
  const search = new URLSearchParams();
  for (const [name, value] of Object.entries(query)) {
    if (value !== undefined && value !== "") search.set(name, String(value));
  }
  const text = search.size > 0 ? `?${search}` : "";
  const request: RequestInit = csrf === "" ? {} : { headers: { [CSRF]: csrf } };
  if (signal) request.signal = signal;
  return answered<T>(await reach(`${PREFIX}${path}${text}`, request));
}

/** Send what changes something; `csrf` is the word that the session was given when it began. */
export async function tell<T>(
  path: string,
  csrf: string,
  body: object | null,
  method: "POST" | "DELETE" = "POST",
): Promise<T> {
  const headers: Record<string, string> = csrf === "" ? {} : { [CSRF]: csrf };
  const request: RequestInit = { method, headers };
  if (body !== null) {
    headers["Content-Type"] = "application/json";
    request.body = JSON.stringify(body);
  }
  return answered<T>(await reach(`${PREFIX}${path}`, request));
}

async function reach(url: string, request: RequestInit): Promise<Response> {
  try {
    return await fetch(url, request);
  } catch (error) {
    if (request.signal?.aborted) throw error;
    throw new RefusedError("the console cannot be reached", 0, "unreachable");
  }
}

async function answered<T>(answer: Response): Promise<T> {
  if (answer.status === 204) return undefined as T;
  if (answer.ok) return (await answer.json()) as T;
  const said = (await answer.json().catch(() => ({}))) as {
    detail?: unknown;
    why?: unknown;
    position?: number | null;
  };
  const again = answer.headers.get("Retry-After");
  const wait = answer.status === 429 && again ? `; try again in ${again} s` : "";
  throw new RefusedError(
    typeof said.detail === "string"
      ? `${said.detail}${wait}`
      : `the console answered ${answer.status} ${answer.statusText}${wait}`,
    answer.status,
    typeof said.why === "string" ? said.why : "",
    said.position ?? null,
  );
}

/** The id under which the store keeps the claim of an address. */
export async function claimId(run: string, address: string): Promise<string | null> {
  const page = await ask<{ items: { id: string }[] }>("/claims", { run_id: run, address });
  return page.items[0]?.id ?? null;
}
