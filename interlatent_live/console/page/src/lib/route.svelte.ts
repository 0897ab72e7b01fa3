// Where the page is, kept in the address after #, so that every view can be linked to.

export type Route =
  | { view: "fleet" }
  | {
      view: "agent";
      run: string;
      hookPoint: string;
      env: number;
      /** "EPISODE.STEP" that is asked why, or "now". */
      why?: string;
    }
  | { view: "feature"; run: string; hookPoint: string; feature: number }
  | { view: "map"; run: string; hookPoint: string }
  | { view: "claims"; run: string; hookPoint: string }
  | { view: "interventions"; run: string; hookPoint: string; features: number[]; command: string }
  | { view: "alerts" }
  | { view: "recordings"; shown: RecordedPlace | null }
  | { view: "branches"; name: string }
  | { view: "audit"; filters: AuditFilters };

/** A place in a recording, and what is looked for in it; null and "" are left to the view. */
export interface RecordedPlace {
  file: string;
  /** Of the recorded run; not `run`, which is a live one. */
  recorded: string;
  hookPoint: string;
  env: number;
  /** Seconds since the recording began; null: where it is. */
  at: number | null;
  predicate: string;
  feature: number | null;
}

/** What of the audit is shown; "" is all. `entry` is the number of the one that is meant. */
export interface AuditFilters {
  entry: string;
  kind: string;
  actor: string;
  agent: string;
  command: string;
}

const NO_FILTERS: AuditFilters = { entry: "", kind: "", actor: "", agent: "", command: "" };

export function parse(hash: string): Route {
  const [path = "", search = ""] = hash.replace(/^#\/?/, "").split("?");
  const [view, run, hookPoint = "", feature] = path.split("/").map(decoded);
  const query = new URLSearchParams(search);
  if (view === "alerts") return { view };
  if (view === "branches") return { view, name: run ?? "" };
  if (view === "recordings") {
    if (!run) return { view, shown: null };
    const at = Number(query.get("at") ?? NaN);
    return {
      view,
      shown: {
        file: run,
        recorded: query.get("run") ?? "",
        hookPoint: query.get("hook") ?? "",
        env: index(query.get("env")) ?? 0,
        at: Number.isFinite(at) && at >= 0 ? at : null,
        predicate: query.get("predicate") ?? "",
        feature: index(query.get("feature")),
      },
    };
  }
  if (view === "audit") {
    const filters = { ...NO_FILTERS };
    for (const name of Object.keys(filters) as (keyof AuditFilters)[]) {
      filters[name] = query.get(name) ?? "";
    }
    return { view, filters };
  }
  if (!run) return { view: "fleet" };
  if (view === "agent") {
    return { view, run, hookPoint, env: index(query.get("env")) ?? 0, why: query.get("why") ?? "" };
  }
  if (view === "map" || view === "claims") return { view, run, hookPoint };
  if (view === "interventions") {
    const features = (query.get("features") ?? "").split(",").map(index);
    return {
      view,
      run,
      hookPoint,
      features: features.filter((one) => one !== null),
      command: query.get("command") ?? "",
    };
  }
  const which = index(feature);
  if (view === "feature" && which !== null) return { view, run, hookPoint, feature: which };
  return { view: "fleet" };
}

function decoded(part: string): string {
  try {
    return decodeURIComponent(part);
  } catch {
    return part;
  }
}

function index(text: string | null | undefined): number | null {
  return text && /^\d{1,9}$/.test(text) ? Number(text) : null;
}

export function link(route: Route): string {
  if (route.view === "fleet") return "#/";
  if (route.view === "alerts") return "#/alerts";
  if (route.view === "branches") return `#/branches${route.name ? `/${encodeURIComponent(route.name)}` : ""}`;
  const query = new URLSearchParams();
  if (route.view === "recordings") {
    if (route.shown === null) return "#/recordings";
    const { file, recorded, hookPoint, env, at, predicate, feature } = route.shown;
    if (recorded) query.set("run", recorded);
    if (hookPoint) query.set("hook", hookPoint);
    if (env > 0) query.set("env", String(env));
    if (at !== null) query.set("at", at.toFixed(2));
    if (predicate) query.set("predicate", predicate);
    if (feature !== null) query.set("feature", String(feature));
    return `#/recordings/${encodeURIComponent(file)}${query.size > 0 ? `?${query}` : ""}`;
  }
  if (route.view === "audit") {
    for (const [name, value] of Object.entries(route.filters)) if (value) query.set(name, value);
    return query.size > 0 ? `#/audit?${query}` : "#/audit";
  }
  const parts = [route.view, route.run, route.hookPoint];
  if (route.view === "feature") parts.push(String(route.feature));
  if (route.view === "agent" && route.env > 0) query.set("env", String(route.env));
  if (route.view === "agent" && route.why) query.set("why", route.why);
  if (route.view === "interventions") {
    if (route.features.length > 0) query.set("features", route.features.join(","));
    if (route.command !== "") query.set("command", route.command);
  }
  const path = `#/${parts.map(encodeURIComponent).join("/")}`;
  return query.size > 0 ? `${path}?${query}` : path;
}

/** The audit with only what these filters let through. */
export function auditLink(filters: Partial<AuditFilters>): string {
  return link({ view: "audit", filters: { ...NO_FILTERS, ...filters } });
}

class Place {
  route = $state.raw<Route>(parse(location.hash));

  constructor() {
    window.addEventListener("hashchange", () => (this.route = parse(location.hash)));
  }

  go(route: Route): void {
    location.hash = link(route);
  }
}

export const place = new Place();
