// Who is at the page. The cookie is the browser's, and the page cannot read it; what the page keeps is
// the name, the role, and the word that proves that a request is this page's own. A browser sends the
// cookie of one port of this machine to every other port, but keeps localStorage apart: so the word
// lies there.

import { ask, RefusedError, tell } from "./api";

export type Role = "viewer" | "operator" | "admin";
export type Proof = { token: string } | { name: string; password: string };

interface Known {
  actor: string;
  role: Role;
  csrf: string | null;
}

const KEPT = "interlatent.csrf";
const CODE = /^#login=([\w-]+)$/;

class Person {
  actor = $state("");
  role = $state<Role>("viewer");
  csrf = $state("");
  /** Why a session that was there is no more; "" otherwise. */
  ended = $state("");

  get signedIn(): boolean {
    return this.csrf !== "";
  }

  get mayCommand(): boolean {
    return this.signedIn && this.role !== "viewer";
  }

  /**
   * Take up a session: by the code that the console printed with its address, once, or by what this
   * browser kept. Why a code was refused is in `ended`.
   */
  async begin(): Promise<void> {
    const code = CODE.exec(location.hash)?.[1];
    if (code !== undefined) {
      // Before anything else: a code has no place in the history or in a copied address.
      history.replaceState(null, "", "#/");
      try {
        await this.signIn({ token: code });
      } catch (error) {
        this.forget(error instanceof Error ? error.message : String(error));
      }
      return;
    }
    await this.remember();
  }

  /** Whether the session still holds; nothing changes while the console cannot be reached. */
  async remember(): Promise<void> {
    const csrf = this.csrf || kept();
    if (csrf === "") return;
    try {
      const known = await ask<Known>("/session", {}, undefined, csrf);
      if (known.csrf === null) this.forget("your session has ended");
      else this.take(known);
    } catch (error) {
      if (error instanceof RefusedError && error.status === 401) this.forget("your session has ended");
    }
  }

  async signIn(proof: Proof): Promise<void> {
    this.take(await tell<Known>("/session", "", proof));
  }

  async signOut(): Promise<void> {
    const csrf = this.csrf;
    this.forget("");
    await tell("/session", csrf, null, "DELETE");
  }

  /** Send what changes something, as this person. */
  async tell<T>(path: string, body: object): Promise<T> {
    try {
      return await tell<T>(path, this.csrf, body);
    } catch (error) {
      const over = error instanceof RefusedError && (error.status === 401 || error.why === "csrf");
      if (over && this.signedIn) this.forget("your session has ended");
      throw error;
    }
  }

  private take(known: Known): void {
    this.actor = known.actor;
    this.role = known.role;
    this.csrf = known.csrf ?? "";
    this.ended = "";
    keep(this.csrf);
  }

  private forget(why: string): void {
    this.actor = this.csrf = "";
    this.role = "viewer";
    this.ended = why;
    keep("");
  }
}

function kept(): string {
  try {
    return localStorage.getItem(KEPT) ?? "";
  } catch {
    return "";
  }
}

function keep(csrf: string): void {
  try {
    if (csrf === "") localStorage.removeItem(KEPT);
    else localStorage.setItem(KEPT, csrf);
  } catch {
    // A browser that keeps nothing asks again after a reload.
  }
}

export const person = new Person();
