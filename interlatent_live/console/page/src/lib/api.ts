// Questions to the console's REST interface; a refusal is one sentence, and it is shown as it is.

const PREFIX = "/api/v1";

export class RefusedError extends Error {}

export async function ask<T>(
  path: string,
  query: Record<string, string | number | boolean | undefined> = {},
  signal?: AbortSignal,
): Promise<T> {
  const search = new URLSearchParams();
  for (const [name, value] of Object.entries(query)) {
    if (value !== undefined && value !== "") search.set(name, String(value));
  }
  const text = search.size > 0 ? `?${search}` : "";
  const answer = await fetch(`${PREFIX}${path}${text}`, signal ? { signal } : {});
  if (!answer.ok) throw new RefusedError(await sentence(answer));
  return (await answer.json()) as T;
}

async function sentence(answer: Response): Promise<string> {
  try {
    const body = (await answer.json()) as { detail?: unknown };
    if (typeof body.detail === "string") return body.detail;
  } catch {
    // Not JSON: something between here and the console answered.
  }
  return `the console answered ${answer.status} ${answer.statusText}`;
}

export class PositionedError extends RefusedError {
  constructor(
    message: string,
    /** Characters from 0 to the mistake in what was sent; null when it has no place. */
    readonly position: number | null,
  ) {
    super(message);
  }
}

/** Send a person's word; it needs the token of the console's state folder. */
export async function tell<T>(path: string, token: string, body: object): Promise<T> {
  const answer = await fetch(`${PREFIX}${path}`, {
    method: "POST",
    headers: { "Content-Type": "application/json", Authorization: `Bearer ${token}` },
    body: JSON.stringify({ id: crypto.randomUUID(), ...body }),
  });
  if (answer.ok) return (await answer.json()) as T;
  const said = (await answer.json().catch(() => ({}))) as { detail?: string; position?: number | null };
  throw new PositionedError(
    said.detail ?? `the console answered ${answer.status} ${answer.statusText}`,
    said.position ?? null,
  );
}

/** The id under which the store keeps the claim of an address. */
export async function claimId(run: string, address: string): Promise<string | null> {
  const page = await ask<{ items: { id: string }[] }>("/claims", { run_id: run, address });
  return page.items[0]?.id ?? null;
}
